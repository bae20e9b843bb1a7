"""`t2r generate`: what it writes, when it ends, what it refuses; models follow a script."""

import json
import os
import pathlib
import shutil
import subprocess
import time
import unittest

from generate_support import BEGIN, END, PROMPT, WORD, GenerateCase
from scripted_models import write_byte_tokenizer, write_llama, write_scripted_model
from support import BINARY, make_text, run


class Generate(GenerateCase):

    def test_it_writes_the_prompt_and_what_the_model_says(self):
        model = self.model(" hello")
        self.assertEqual(self.text(model, "--max-new-tokens", 6), PROMPT + " hello\n")
        (result,) = self.json(model, "--max-new-tokens", 6)
        self.assertEqual(result["prompt"], PROMPT)
        self.assertEqual(result["text"], " hello")
        self.assertEqual(result["token_ids"], list(b" hello"))
        self.assertEqual(
            (result["prompt_tokens"], result["tokens"], result["ended_by"]), (4, 10, "length")
        )

    def test_it_ends_at_the_end_token_and_hides_it(self):
        for eos in (END, [7, END]):
            model = self.model([*b" hi", END, *b" more"], eos_token_id=eos)
            self.assertEqual(self.text(model, "--max-new-tokens", 8), PROMPT + " hi\n")
            (result,) = self.json(model, "--max-new-tokens", 8)
            self.assertEqual(
                (result["text"], result["token_ids"][3:], result["ended_by"]), (" hi", [END], "end")
            )
        self.assertEqual(
            self.text(model, "--max-new-tokens", 9, "--ignore-end"), PROMPT + " hi more\n"
        )

    def test_special_tokens_are_no_text_and_other_added_tokens_are(self):
        model = self.model([*b" a", BEGIN, *b"b", END, WORD, *b"c"])
        self.assertEqual(
            self.text(model, "--max-new-tokens", 7, "--ignore-end"), PROMPT + " ab<word>c\n"
        )
        (result,) = self.json(model, "--max-new-tokens", 7, "--ignore-end", "--stop", "ab<w")
        self.assertEqual(
            (result["text"], result["token_ids"]), (" ", [*b" a", BEGIN, *b"b", END, WORD])
        )

    def test_the_token_that_the_tokenizer_puts_in_front_of_a_text(self):
        model = self.model(" hi", prompt_tokens=len(PROMPT) + 1, begin="<|begin|>")
        (result,) = self.json(model, "--max-new-tokens", 3)
        self.assertEqual(
            (result["text"], result["prompt_tokens"], result["begin_of_text"]), (" hi", 5, True)
        )
        result = self.must("generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", 3)
        self.assertEqual(result.stdout, PROMPT + " hi\n")
        self.assertIn("3 tokens after 5 of the prompt, begin-of-text included", result.stderr)
        (result,) = self.json(model, "--max-new-tokens", 1, "--begin-of-text", "false")
        self.assertEqual((result["prompt_tokens"], result["begin_of_text"]), (4, False))

    def test_generation_config_names_end_tokens_over_config(self):
        model = self.model([*b" hi", END, *b" more"], eos_token_id=END)
        settings = model / "generation_config.json"
        settings.write_text(
            json.dumps(
                {
                    "eos_token_id": [260, ord("i")],
                    "do_sample": True,
                    "temperature": 0.6,
                    "top_p": 0.9,
                }
            )
        )
        result = self.must("generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", 8)
        self.assertEqual(
            result.stdout, PROMPT + " hi\n"
        )  # "i" is text that ends the text, as in transformers
        self.assertIn("asks for sampling (temperature 0.6, top-k 50, top-p 0.9)", result.stderr)
        settings.write_text(json.dumps({"eos_token_id": 260}))
        self.assertEqual(self.text(model, "--max-new-tokens", 8), PROMPT + " hi mor\n")
        settings.write_text(json.dumps({"bos_token_id": BEGIN}))
        self.assertEqual(self.text(model, "--max-new-tokens", 8), PROMPT + " hi\n")
        (result,) = self.json(model, "--max-new-tokens", 1, "--begin-of-text", "true")
        self.assertEqual(result["prompt_tokens"], 5)
        settings.write_text("{")
        self.fails(
            run("generate", "--model", model, "--prompt", PROMPT), 65, "generation_config.json"
        )

    def test_ids_without_a_token_are_no_text_and_no_end(self):
        model = self.model([*b" x", 300, 319, *b"y"], vocab_size=320)
        self.assertEqual(self.text(model, "--max-new-tokens", 5), PROMPT + " xy\n")

    def test_characters_that_span_tokens_come_out_whole(self):
        text = " 😀 é漢 🇩🇪"
        model = self.model(text)
        size = len(text.encode())
        self.assertEqual(self.text(model, "--max-new-tokens", size), PROMPT + text + "\n")
        (result,) = self.json(model, "--max-new-tokens", size, "--stop", "漢")
        self.assertEqual(result["text"], " 😀 é")
        (result,) = self.json(model, "--max-new-tokens", 3)
        self.assertEqual(result["text"], " \ufffd")  # cut within a character
        (result,) = self.json(self.model([0x61, 0xFF, 0xC3, 0x62]), "--max-new-tokens", 4)
        self.assertEqual(result["text"], "a\ufffd\ufffdb")
        # The same with byte pieces of a sentencepiece model, whose ids 4 to 259 are the bytes.
        vocabulary = self.folder / "spm"
        vocabulary.mkdir()
        (vocabulary / "text.txt").write_text(make_text(40, 1))
        self.must(
            "prepare",
            "vocab",
            "--inputs",
            vocabulary / "text.txt",
            "--output",
            vocabulary / "tokenizer.model",
            "--vocab-size",
            320,
        )
        silent = write_scripted_model(self.folder / "silent", [2], 1, 320, positions=30)
        shutil.copy(vocabulary / "tokenizer.model", silent)
        (result,) = self.json(silent, "--max-new-tokens", 1, prompt="the cat")
        pieces = write_scripted_model(
            self.folder / "pieces",
            [4 + byte for byte in "é😀".encode()] + [2, 4 + 0xF0, 4 + 0x61],
            result["prompt_tokens"],
            320,
        )
        shutil.copy(vocabulary / "tokenizer.model", pieces)
        self.assertEqual(self.text(pieces, "--max-new-tokens", 6, prompt="the cat"), "the caté😀\n")
        self.assertEqual(
            self.text(pieces, "--max-new-tokens", 9, "--ignore-end", prompt="the cat"),
            "the caté😀\ufffda\n",
        )

    def test_end_tokens_of_generation_config_count_before_those_of_config(self):
        model = self.model([*b" hi", END, *b" more"], eos_token_id=7)
        generation = model / "generation_config.json"
        for eos, text in (([7, END], " hi"), (END, " hi")):
            generation.write_text(json.dumps({"eos_token_id": eos, "bos_token_id": None}))
            self.assertEqual(self.text(model, "--max-new-tokens", 9), PROMPT + text + "\n", eos)
        generation.write_text('{"eos_token_id": null}')  # then it is what config.json says: 7
        self.assertIn("more", self.text(model, "--max-new-tokens", 9))
        for eos in ("two", [1, "two"], 2.5):
            generation.write_text(json.dumps({"eos_token_id": eos}))
            self.fails(
                run("generate", "--model", model, "--prompt", PROMPT),
                65,
                "generation_config.json",
                '"eos_token_id"',
                str(eos)[:3],
            )

    def test_learned_positions_end_where_it_was_said_before(self):
        model = self.model("0123456789", positions=10)
        result = self.must("generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", 60)
        # The last token is chosen at the tenth position and needs none itself.
        self.assertEqual(result.stdout, PROMPT + "0123456\n")
        self.assertIn(
            "the model has 10 positions: behind a prompt of 4 tokens it stops after 7, "
            "not --max-new-tokens 60",
            result.stderr,
        )
        whole = self.must("generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", 7)
        self.assertNotIn("positions", whole.stderr)
        for prompts in (["--prompt", "x" * 11], ["--prompt", "x", "--prompt", "x" * 11]):
            result = run("generate", "--model", model, *prompts)
            self.fails(result, 78, "has 11 tokens, the model's learned position table 10 rows")
            self.assertEqual(result.stdout, "")  # before anything is written

    def test_rotary_positions_past_the_trained_ones_are_said(self):
        model = write_byte_tokenizer(write_llama(self.folder / "llama", 260, positions=16))
        result = self.must("generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", 40)
        self.assertIn("pass the 16 positions that the model was trained with", result.stderr)
        self.assertIn("40 tokens after 4", result.stderr)
        result = self.must("generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", 12)
        self.assertNotIn("trained", result.stderr)

    def test_very_many_tokens_may_be_asked_for(self):
        model = write_byte_tokenizer(write_llama(self.folder / "endless", 260, positions=16))
        (model / "generation_config.json").write_text(
            json.dumps({"eos_token_id": list(range(260))})
        )
        result = self.must(
            "generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", 2**40
        )
        self.assertIn(
            f"{2**40} pass the 16 positions that the model was trained with", result.stderr
        )
        self.assertNotIn("the model has", result.stderr)  # it has no table of positions
        for count in (2**40 + 1, 2**63 - 1):
            result = run(
                "generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", count
            )
            self.fails(result, 78, f"max-new-tokens = {count}, allowed: 1 to {2**40}")

    def test_weights_that_are_not_finite_are_a_numeric_failure(self):
        model = self.model(" hello", scale=3e38)  # finite weights whose logits are not
        for sampling in ([], ["--temperature", 1]):
            for output in ([], ["--json"]):
                result = run("generate", "--model", model, "--prompt", PROMPT, *sampling, *output)
                self.fails(result, 74, "no token can be drawn")
        result = run(
            "generate", "--model", self.model(" hello", scale=float("nan")), "--prompt", PROMPT
        )
        self.fails(result, 74)
        self.assertEqual(result.stdout, "")

    def test_stop_strings_end_a_text_in_front_of_them(self):
        model = self.model(" one two three two")
        stopped = lambda *stops: self.text(
            model, "--max-new-tokens", 18, *(x for stop in stops for x in ("--stop", stop))
        )
        self.assertEqual(stopped("two"), PROMPT + " one \n")
        self.assertEqual(stopped("three", "e t"), PROMPT + " on\n")
        self.assertEqual(stopped("o three"), PROMPT + " one tw\n")
        self.assertEqual(
            stopped("twofold", "threes"), PROMPT + " one two three two\n"
        )  # what was held back is written
        self.assertEqual(
            stopped("ab c"), PROMPT + " one two three two\n"
        )  # the prompt is no part of it
        (result,) = self.json(model, "--max-new-tokens", 18, "--stop", "two")
        self.assertEqual(
            (result["text"], result["ended_by"], result["tokens"]), (" one ", "stop", 4 + 8)
        )
        self.fails(run("generate", "--model", model, "--prompt", "a", "--stop", ""), 78, "stop")
        lines = self.json(model, "--prompt", "efgh", "--sequences-at-once", 2, "--stop", "two")
        self.assertEqual([line["text"] for line in lines], [" one ", " one "])

    def test_options_without_effect_are_said_and_impossible_ones_refused(self):
        model = self.model(" one")
        result = self.must(
            "generate",
            "--model",
            model,
            "--prompt",
            "a",
            "--max-new-tokens",
            2,
            "--top-k",
            5,
            "--top-p",
            0.5,
            "--seed",
            3,
        )
        for option in ("--top-k", "--top-p", "--seed"):
            self.assertEqual(result.stderr.count(f"{option} has no effect"), 1)
        result = self.must(
            "generate",
            "--model",
            model,
            "--prompt",
            "a",
            "--max-new-tokens",
            2,
            "--top-k",
            5,
            "--temperature",
            0.5,
        )
        self.assertNotIn("no effect", result.stderr)
        for option, value in (
            ("seed", -1),
            ("temperature", -1),
            ("top-p", 0),
            ("top-k", -1),
            ("max-new-tokens", 0),
            ("sequences-at-once", 0),
            ("threads", -1),
        ):
            self.fails(
                run("generate", "--model", model, "--prompt", "a", f"--{option}", value),
                78,
                f"{option} = {value}",
            )
        self.fails(
            run("generate", "--model", model, "--prompt", "a", "--temperature", "nan"),
            64,
            "temperature = nan",
        )

    def test_drawn_texts_depend_on_the_seed_and_the_prompts_number_alone(self):
        model = write_byte_tokenizer(write_llama(self.folder / "drawing", 256, positions=64))
        sampling = ["--temperature", 1.5, "--max-new-tokens", 12]
        lines = self.json(model, "--prompt", PROMPT, *sampling, "--seed", 7)
        alone = [self.json(model, *sampling, "--seed", seed)[0]["token_ids"] for seed in (7, 8)]
        self.assertEqual([line["token_ids"] for line in lines], alone)
        self.assertNotEqual(alone[0], alone[1])

    def test_threads_fit_the_step_and_wait_shortly(self):
        model = self.model(" one")
        (result,) = self.json(model, "--max-new-tokens", 4)
        self.assertEqual(result["threads"], 1)  # operations of a microsecond
        (result,) = self.json(model, "--max-new-tokens", 4, "--threads", 2)
        self.assertEqual(result["threads"], 2)
        if b"__asan_" in pathlib.Path(BINARY).read_bytes():
            return  # sanitizers are not there yet where the variable is set
        waits = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        for given, wanted in (
            ({}, {"GOMP_SPINCOUNT": "1000"}),
            ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
            ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ):
            environment = {
                key: value for key, value in os.environ.items() if key not in waits
            } | given
            with subprocess.Popen(
                [
                    BINARY,
                    "generate",
                    "--model",
                    model,
                    "--prompt-file",
                    "-",
                    "--max-new-tokens",
                    "4",
                ],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            ) as process:
                deadline = time.monotonic() + 30
                while True:  # until it has started itself again
                    variables = (
                        pathlib.Path(f"/proc/{process.pid}/environ")
                        .read_bytes()
                        .decode(errors="replace")
                        .split("\0")
                    )
                    seen = {
                        key: value
                        for key, _, value in (text.partition("=") for text in variables)
                        if key in waits
                    }
                    if seen == wanted or time.monotonic() > deadline:
                        break
                    time.sleep(0.01)
                text, _ = process.communicate("abcd")
            self.assertEqual(seen, wanted)
            self.assertEqual(text, "abcd one\n")

    def test_text_that_cannot_be_written_is_an_error(self):
        model = self.model(" one")
        for output in ([], ["--json"]):
            with open("/dev/full", "w") as full:
                result = subprocess.run(
                    [
                        BINARY,
                        "generate",
                        "--model",
                        str(model),
                        "--prompt",
                        "a",
                        "--max-new-tokens",
                        "2",
                        *output,
                    ],
                    stdout=full,
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=60,
                )
            self.assertEqual(result.returncode, 73, result.stderr)
            self.assertIn("standard output", result.stderr)


if __name__ == "__main__":
    unittest.main()
