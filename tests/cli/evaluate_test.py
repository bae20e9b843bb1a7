"""t2r evaluate: its protocol, another tokenizer's data, losses that are not finite, leftovers."""

import json
import math
import os
import shutil
import signal
import struct
import time
import unittest

from support import Case, make_text, run, start


class Evaluate(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = cls.small_model().resolve()
        cls.scratch = cls.folder / "tmp"
        cls.scratch.mkdir()
        os.environ["TMPDIR"] = str(cls.scratch)

    @classmethod
    def tearDownClass(cls):
        del os.environ["TMPDIR"]
        super().tearDownClass()

    def evaluate(self, *more, model=None, **options):
        return run("evaluate", "--model", model or self.model, "--context", 32, *more, **options)

    def scratch_is_empty(self):
        return [p.name for p in self.scratch.iterdir() if p.name.startswith("t2r-")] == []

    def copy_of_model(self, name, keep_manifest=False):
        copy = self.folder / name
        shutil.copytree(self.model, copy)
        if not keep_manifest:
            (copy / "manifest.json").unlink(missing_ok=True)
        return copy

    def test_another_tokenizer_is_refused_everywhere(self):
        other = self.other_tokenizer()
        self.fails(
            self.evaluate("--data", self.folder / "other"), 78, "another tokenizer", str(self.model)
        )
        self.fails(
            self.evaluate("--data", self.folder / "valid", "--tokenizer", other),
            78,
            "another tokenizer",
            str(other),
        )
        self.fails(
            self.evaluate("--text", self.folder / "valid.txt", "--tokenizer", other),
            78,
            "another tokenizer",
            str(other),
        )
        self.fails(
            run(
                "generate",
                "--model",
                self.model,
                "--prompt",
                "the",
                "--tokenizer",
                other,
                "--max-new-tokens",
                2,
            ),
            78,
            "another tokenizer",
            str(other),
        )
        for more in (
            ["--data", self.folder / "valid"],
            ["--data", self.folder / "valid", "--tokenizer", self.tokenizer],
            ["--text", self.folder / "valid.txt", "--tokenizer", self.tokenizer],
        ):
            self.assertEqual(self.evaluate(*more).returncode, 0)

    def test_a_checkpoint_without_tokenizer_knows_which_it_was_trained_with(self):
        self.must(
            "train",
            "--output",
            self.folder / "bare",
            "--train-data",
            self.folder / "train",
            "--model.layers",
            1,
            "--model.hidden-size",
            32,
            "--model.heads",
            2,
            "--sequence-length",
            32,
            "--batch-size",
            8,
            "--steps",
            1,
        )
        model = self.folder / "bare/checkpoints/latest"
        other = self.other_tokenizer()
        self.assertEqual(list(model.glob("tokenizer*")), [])
        self.fails(
            self.evaluate("--data", self.folder / "other", model=model), 78, "another tokenizer"
        )
        self.fails(
            run(
                "generate",
                "--model",
                model,
                "--prompt",
                "the",
                "--tokenizer",
                other,
                "--max-new-tokens",
                2,
            ),
            78,
            "another tokenizer",
        )
        self.assertEqual(self.evaluate("--data", self.folder / "valid", model=model).returncode, 0)
        # A folder that knows of no tokenizer takes any whose ids it has.
        bare = self.folder / "bare-copy"
        shutil.copytree(model, bare)
        (bare / "manifest.json").unlink()
        self.assertEqual(self.evaluate("--data", self.folder / "other", model=bare).returncode, 0)

    def test_a_loss_that_is_not_finite_is_no_result(self):
        copy = self.copy_of_model("nan")
        path = copy / "model.safetensors"
        data = bytearray(path.read_bytes())
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        begin = 8 + size + header["model.norm.weight"]["data_offsets"][0]
        data[begin : begin + 4] = struct.pack("<f", math.nan)
        path.write_bytes(data)
        for more in ([], ["--json"]):
            result = self.evaluate("--data", self.folder / "valid", *more, model=copy)
            self.fails(result, 74, "nan")
            self.assertEqual(result.stdout, "")

    def test_text_gives_what_its_shards_give_on_any_number_of_ranks(self):
        self.must(
            "prepare",
            "lm",
            "--inputs",
            self.folder / "valid.txt",
            "--tokenizer",
            self.tokenizer,
            "--output",
            self.folder / "whole",
            "--end-of-document=false",
        )
        keys = ("loss_nats_per_token", "tokens", "perplexity_per_word", "bits_per_byte")
        of = lambda result: [json.loads(result.stdout)[key] for key in keys]
        shards = of(self.evaluate("--data", self.folder / "whole", "--json"))
        self.assertEqual(of(self.evaluate("--text", self.folder / "valid.txt", "--json")), shards)
        for got, wanted in zip(
            of(self.evaluate("--text", self.folder / "valid.txt", "--json", ranks=2)), shards
        ):
            self.assertAlmostEqual(got, wanted, places=6)
        self.assertTrue(self.scratch_is_empty())

    def test_nothing_stays_in_the_temporary_folder(self):
        self.fails(self.evaluate("--text", self.folder / "none.txt"), 78, "does not exist")
        self.fails(self.evaluate("--text", self.folder), 78, "a folder; name the text files")
        self.fails(
            self.evaluate("--text", next((self.folder / "valid").glob("*.h5"))),
            65,
            "is a shard of tokens, not text",
        )
        self.fails(
            self.evaluate("--data", self.folder / "valid.txt"),
            65,
            "is text, not a shard",
            "t2r prepare lm",
        )
        bad = self.folder / "bad.txt"
        bad.write_bytes(b"good \xff bad\n")
        self.fails(
            self.evaluate("--text", bad), 65, "byte 5 is not valid UTF-8", "--allow-invalid-utf8"
        )
        self.fails(self.evaluate("--text", bad, ranks=2), 65, "byte 5 is not valid UTF-8")
        self.assertEqual(self.evaluate("--text", bad, "--allow-invalid-utf8").returncode, 0)
        self.fails(
            self.evaluate("--text", self.folder / "train.txt", limit_bytes=4096), 73, "TMPDIR"
        )
        self.assertTrue(self.scratch_is_empty())

    def test_a_signal_leaves_nothing_in_the_temporary_folder(self):
        text = self.folder / "long.txt"
        text.write_text(make_text(60000, 5))
        for number in (signal.SIGTERM, signal.SIGINT):
            process = start("evaluate", "--model", self.model, "--text", text, "--context", 32)
            deadline = time.monotonic() + 60
            while (
                self.scratch_is_empty() and process.poll() is None and time.monotonic() < deadline
            ):
                time.sleep(0.01)
            self.assertIsNone(process.poll())
            process.send_signal(number)
            process.communicate(timeout=60)
            self.assertNotEqual(process.returncode, 0)
            self.assertTrue(self.scratch_is_empty())

    def test_values_that_are_not_allowed(self):
        data = ["--data", self.folder / "valid"]
        for more, text in (
            (["--max-tokens", -1], "max-tokens = -1, allowed: 0 or more"),
            (["--context", 0], "context = 0, allowed: 1 or more"),
            (["--scored", 33], "scored = 33, allowed: 1 to context = 32"),
            (["--sequences-at-once", 0], "sequences-at-once = 0, allowed: 1 to 1099511627776"),
            (["--sequences-at-once", 2**40, "--context", 2**40], "sequences-at-once x context"),
        ):
            self.fails(self.evaluate(*data, *more), 78, text)
        self.fails(
            self.evaluate("--data", self.folder / "valid", "--text", self.folder / "valid.txt"),
            64,
            "exactly one of --data and --text",
        )
        self.fails(self.evaluate(*data, "--end-of-document"), 0, "--end-of-document has no effect")

    def test_a_context_beyond_the_trained_positions_is_said(self):
        copy = self.copy_of_model("short")
        config = json.loads((copy / "config.json").read_text())
        config["max_position_embeddings"] = 16
        (copy / "config.json").write_text(json.dumps(config))
        self.fails(
            self.evaluate("--data", self.folder / "valid", model=copy),
            0,
            "context = 32 is beyond the 16 positions",
        )
        self.must(
            "train",
            "--output",
            self.folder / "gpt2",
            "--train-data",
            self.folder / "train",
            "--tokenizer",
            self.tokenizer,
            "--model.family",
            "gpt2",
            "--model.layers",
            1,
            "--model.hidden-size",
            32,
            "--model.heads",
            2,
            "--sequence-length",
            16,
            "--model.max-positions",
            16,
            "--batch-size",
            8,
            "--steps",
            1,
        )
        for context in (32, 100000):  # longer than the text, too
            self.fails(
                self.evaluate(
                    "--data",
                    self.folder / "valid",
                    "--context",
                    context,
                    model=self.folder / "gpt2/checkpoints/latest",
                ),
                78,
                f"context = {context}, allowed with this model: 1 to 16, its learned positions",
            )


if __name__ == "__main__":
    unittest.main()
