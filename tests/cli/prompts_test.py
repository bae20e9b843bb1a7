"""Prompts of `t2r generate`: several, from files and standard input, empty ones."""

import subprocess
import unittest

from generate_support import BEGIN, END, GenerateCase
from support import BINARY, run


class Prompts(GenerateCase):
    def test_several_prompts_are_continued_in_order(self):
        model = self.model(" one two")
        result = self.must(
            "generate",
            "--model",
            model,
            "--prompt",
            "abcd",
            "--prompt",
            "{}",
            "--prompt",
            "[a,b]",
            "--prompt",
            "efgh",
            "--max-new-tokens",
            4,
        )
        self.assertEqual(
            result.stdout, "abcd one\n---\n{}\x05\x05 o\n---\n[a,b]one \n---\nefgh one\n"
        )
        self.assertIn("16 tokens after 15 of 4 prompts", result.stderr)
        for batch_size in (1, 2, 9):
            lines = self.json(
                model,
                "--prompt",
                "x",
                "--prompt",
                "efgh",
                "--max-new-tokens",
                4,
                "--sequences-at-once",
                batch_size,
                prompt="abcd",
            )
            self.assertEqual([line["prompt"] for line in lines], ["abcd", "x", "efgh"])
            self.assertEqual([line["text"] for line in lines], [" one", "\x05\x05\x05 ", " one"])
            self.assertEqual(
                [line["batch_size"] for line in lines], [min(batch_size, 2), 1, min(batch_size, 2)]
            )
            self.assertEqual([line["tokens"] for line in lines], [8, 5, 8])

    def test_prompts_of_a_batch_end_by_themselves(self):
        model = self.model([*b" a", END, *b"bcd"], eos_token_id=END)
        lines = self.json(model, "--prompt", "efgh", "--sequences-at-once", 2)
        self.assertEqual([line["text"] for line in lines], [" a", " a"])
        self.assertEqual([line["tokens"] for line in lines], [7, 7])
        result = self.must(
            "generate", "--model", model, "--prompt", "abcd", "--sequences-at-once", 3
        )
        self.assertEqual(result.stdout, "abcd a\n")  # copies, to measure: the first is printed

    def test_prompts_come_from_files_and_standard_input(self):
        model = self.model(" one")
        (self.folder / "prompts.txt").write_bytes(b"abcd\r\n\nefgh")
        wanted = "abcd one\n---\nefgh one\n"
        result = self.must(
            "generate",
            "--model",
            model,
            "--prompts",
            self.folder / "prompts.txt",
            "--max-new-tokens",
            4,
        )
        self.assertEqual(result.stdout, wanted)
        self.assertIn("1 empty line(s) left out", result.stderr)
        piped = lambda option, text: subprocess.run(
            [BINARY, "generate", "--model", model, option, "-", "--max-new-tokens", "4"],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(piped("--prompts", "abcd\nefgh\n").stdout, wanted)
        self.assertEqual(piped("--prompt-file", "ab\nc").stdout, "ab\nc one\n")
        self.fails(piped("--prompts", "\n\n"), 65, "standard input: no prompt in it")
        self.fails(piped("--prompt-file", ""), 65, "prompt 1 has no tokens")
        self.fails(
            run("generate", "--model", model, "--prompts", self.folder / "absent"), 65, "absent"
        )

    def test_prompts_have_one_source_and_are_text(self):
        model = self.model(" one")
        self.fails(run("generate", "--model", model), 64, "exactly one of --prompt")
        self.fails(
            run("generate", "--model", model, "--prompt", "a", "--prompts", "-"),
            64,
            "exactly one of --prompt",
        )
        self.fails(run("generate", "--model", model, "--prompt", "The", "capital"), 64, "capital")
        self.fails(
            run(
                "generate",
                "--model",
                model,
                "--prompt",
                b"ok".decode(),
                "--prompt",
                b"no \xff".decode(errors="surrogateescape"),
            ),
            65,
            "--prompt number 2: offset 3 is not valid UTF-8",
        )

    def test_an_empty_prompt_is_the_token_that_begins_a_text(self):
        model = self.model(" hi", prompt_tokens=1, bos_token_id=BEGIN)
        (result,) = self.json(model, "--max-new-tokens", 3, prompt="")
        self.assertEqual(
            (result["text"], result["prompt_tokens"], result["begin_of_text"]), (" hi", 1, True)
        )
        self.fails(
            run("generate", "--model", model, "--prompt", "", "--begin-of-text", "false"),
            65,
            "prompt 1 has no tokens",
        )
        model = self.model(" hi", bos_token_id=BEGIN)
        for choice, tokens in (
            ("auto", 4),
            ("true", 5),
            ("false", 4),
        ):  # the tokenizer itself puts nothing in front
            (result,) = self.json(model, "--max-new-tokens", 1, "--begin-of-text", choice)
            self.assertEqual(
                (result["prompt_tokens"], result["begin_of_text"]), (tokens, choice == "true")
            )
        result = run(
            "generate", "--model", self.model(" hi"), "--prompt", "a", "--begin-of-text", "true"
        )
        self.fails(result, 78, "begin-of-text = true", "names such a token")
        self.fails(
            run("generate", "--model", self.model(" hi"), "--prompt", ""),
            65,
            "prompt 1 has no tokens",
        )


if __name__ == "__main__":
    unittest.main()
