"""Conversion, verification, evaluation and generation as a user runs them."""

import json
import shutil
import unittest

from support import SHARED, SOURCE, Case, run


class Pipeline(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for family in ("llama", "gpt2"):
            cls.must(
                "train",
                "--output",
                cls.folder / family,
                "--train-data",
                cls.folder / "train",
                "--tokenizer",
                cls.tokenizer,
                "--model.family",
                family,
                "--model.layers",
                3,
                "--model.hidden-size",
                32,
                "--model.heads",
                4,
                "--model.max-positions",
                512,
                "--sequence-length",
                32,
                "--batch-size",
                8,
                "--steps",
                30,
                "--learning-rate",
                3e-3,
            )

    def model(self, family):
        return self.folder / family / "checkpoints/latest"

    def perplexity(self, model, *more, **options):
        result = self.must(
            "evaluate",
            "--model",
            model,
            "--data",
            self.folder / "valid",
            "--context",
            32,
            "--json",
            *more,
            **options,
        )
        return json.loads(result.stdout)

    def test_conversion_keeps_weights_and_says_what_is_new(self):
        output = self.folder / "t2r75"
        result = self.must(
            "convert",
            "--model",
            self.model("llama"),
            "--output",
            output,
            "--feature-map",
            "t2r",
            "--feature-size",
            8,
            "--keep-softmax-every",
            4,
        )
        self.assertIn("2 of 3 layers are linear", result.stdout)
        self.assertIn("model.layers.0.self_attn.feature_map.weight", result.stdout)
        self.assertNotIn("model.layers.2.self_attn.feature_map.weight", result.stdout)
        self.assertEqual(
            json.loads((output / "config.json").read_text())["t2r"]["softmax_layers"], [2]
        )
        self.assertTrue((output / "tokenizer.model").exists())
        # Keeping every layer would convert nothing.
        self.fails(
            run(
                "convert",
                "--model",
                self.model("llama"),
                "--output",
                self.folder / "none",
                "--keep-softmax",
                0,
                1,
                2,
            ),
            78,
            "there is nothing to convert",
        )
        # Layers that keep softmax do what they did: same perplexity, to the last digit.
        same = self.folder / "all-softmax"
        shutil.copytree(self.model("llama"), same)
        (same / "manifest.json").unlink()  # of the config that is changed here
        config = json.loads((same / "config.json").read_text())
        config.update(
            model_type="t2r",
            t2r={
                "base_model_type": "llama",
                "feature_map": "t2r",
                "feature_size": 8,
                "softmax_layers": [0, 1, 2],
            },
        )
        (same / "config.json").write_text(json.dumps(config))
        self.assertEqual(
            self.perplexity(same)["perplexity_per_token"],
            self.perplexity(self.model("llama"))["perplexity_per_token"],
        )

    def test_generation_agrees_with_evaluation_for_every_kind_of_layer(self):
        for family in ("llama", "gpt2"):
            for name, options in (
                ("t2r", ["--feature-map", "t2r", "--feature-size", 8]),
                ("elu", ["--feature-map", "elu"]),
                ("hedgehog", ["--feature-map", "hedgehog"]),
                ("mixed", ["--feature-map", "t2r", "--keep-softmax", 1]),
            ):
                output = self.folder / f"{family}-{name}"
                self.must("convert", "--model", self.model(family), "--output", output, *options)
                short, long = (
                    json.loads(
                        self.must(
                            "generate",
                            "--model",
                            output,
                            "--prompt",
                            "The cat",
                            "--max-new-tokens",
                            n,
                            "--ignore-end",
                            "--json",
                        ).stdout
                    )
                    for n in (20, 200)
                )
                self.assertEqual(long["tokens"] - short["tokens"], 180)
                if name == "mixed":
                    self.assertGreater(long["state_bytes"], short["state_bytes"])
                else:
                    self.assertEqual(long["state_bytes"], short["state_bytes"])

    def test_benchmark_of_generation(self):
        for attention, grows in (
            ("softmax", True),
            ("t2r", False),
            ("elu", False),
            ("hedgehog", False),
        ):
            for family in ("llama", "gpt2"):
                with self.subTest(attention, family=family):
                    lines = self.must(
                        "bench",
                        "generate",
                        "--device",
                        "cpu",
                        "--lengths",
                        16,
                        64,
                        "--sequences-at-once",
                        3,
                        "--timed-steps",
                        10,
                        "--untimed-steps",
                        2,
                        "--vocab-size",
                        50,
                        "--model.family",
                        family,
                        "--model.layers",
                        2,
                        "--model.hidden-size",
                        32,
                        "--model.heads",
                        2,
                        "--model.attention",
                        attention,
                        *([] if attention in ("softmax", "elu") else ["--model.feature-size", 8]),
                        "--json",
                    ).stdout.splitlines()
                    short, long = map(json.loads, lines)
                    self.assertEqual((short["length"], long["length"]), (16, 64))
                    self.assertAlmostEqual(short["tokens_per_second"] * short["seconds_median"], 3)
                    # 2 layers x keys and values x 3 sequences x 32 columns x 4 bytes; 12 tokens are
                    # added
                    expected = (
                        [2 * 2 * 3 * 32 * 4 * (length + 12) for length in (16, 64)]
                        if grows
                        else [short["state_bytes"]] * 2
                    )
                    self.assertEqual([short["state_bytes"], long["state_bytes"]], expected)
        table = self.must(
            "bench",
            "generate",
            "--device",
            "cpu",
            "--lengths",
            8,
            "--timed-steps",
            2,
            "--model",
            self.model("llama"),
            "--temperature",
            0.8,
            "--top-k",
            5,
            "--top-p",
            0.9,
        ).stdout
        self.assertIn("tokens/s", table)

    def test_generation_prints_text_and_sampling_is_reproducible(self):
        model = self.model("gpt2")
        sample = lambda seed: self.must(
            "generate",
            "--model",
            model,
            "--prompt",
            "The old ship",
            "--temperature",
            0.9,
            "--top-k",
            20,
            "--top-p",
            0.95,
            "--seed",
            seed,
            "--max-new-tokens",
            30,
        ).stdout
        self.assertTrue(sample(1).startswith("The old ship"))
        self.assertEqual(sample(1), sample(1))
        self.assertNotEqual(sample(1), sample(2))

    def test_evaluation_protocol_and_ranks(self):
        model = self.model("llama")
        one, two = self.perplexity(model), self.perplexity(model, "--threads", 1)
        self.assertAlmostEqual(one["perplexity_per_token"], two["perplexity_per_token"], places=6)
        ranks = self.perplexity(model, ranks=2)
        self.assertAlmostEqual(ranks["perplexity_per_token"], one["perplexity_per_token"], places=6)
        self.assertEqual(ranks["tokens"], one["tokens"])
        overlapping = self.perplexity(model, "--scored", 8)
        self.assertEqual(overlapping["tokens"], one["tokens"])
        self.assertNotEqual(overlapping["perplexity_per_token"], one["perplexity_per_token"])
        # The first window is scored whole whatever the protocol, and from then on every target has
        # its own number of tokens in sight: at 64 targets, windows side by side begin anew and
        # windows that move by 8 do not.
        scored = lambda n, limit: self.perplexity(model, "--scored", n, "--max-tokens", limit)[
            "perplexity_per_token"
        ]
        self.assertEqual(scored(8, 32), scored(32, 32))
        self.assertNotAlmostEqual(scored(8, 64), scored(32, 64), places=3)
        # per word: the same nats over words
        import math

        nats = math.log(one["perplexity_per_token"]) * one["tokens"]
        self.assertAlmostEqual(math.log(one["perplexity_per_word"]) * one["words"], nats, places=3)
        text = self.must(
            "evaluate", "--model", model, "--text", self.folder / "valid.txt", "--context", 32
        )
        self.assertIn("whitespace-separated words", text.stdout)
        self.assertIn("windows of 32 tokens, the last 32 of each scored", text.stdout)

    def test_conversion_is_refused_where_it_makes_no_sense(self):
        converted = self.folder / "twice"
        self.must("convert", "--model", self.model("llama"), "--output", converted)
        self.fails(
            run("convert", "--model", converted, "--output", self.folder / "thrice"),
            78,
            "is converted already",
        )
        self.fails(
            run("convert", "--model", self.model("llama"), "--output", converted),
            78,
            "exists already",
        )
        self.fails(
            run(
                "convert",
                "--model",
                self.model("llama"),
                "--output",
                self.folder / "x",
                "--keep-softmax",
                7,
            ),
            78,
            "softmax_layers = 7",
            "0 to 2",
        )
        self.fails(
            run(
                "convert",
                "--model",
                self.model("llama"),
                "--output",
                self.folder / "x",
                "--feature-map",
                "rfa",
            ),
            78,
            'feature-map = "rfa"',
            "t2r, elu, hedgehog",
        )
        self.fails(
            run(
                "convert",
                "--model",
                self.model("llama"),
                "--output",
                self.folder / "x",
                "--feature-map",
                "hedgehog",
                "--feature-size",
                7,
            ),
            78,
            "feature_size = 7",
            "even, at most",
        )
        self.assertFalse((self.folder / "x").exists())

    def test_context_past_a_learned_position_table_is_refused(self):
        self.fails(
            run("generate", "--model", self.model("gpt2"), "--prompt", "The cat " * 300),
            78,
            "learned position table 512 rows",
        )


class Fixtures(unittest.TestCase):
    """Checkpoints made by transformers; they lie outside the project: a test says if not."""

    def check(self, folder, *options):
        if not (folder / "expected.safetensors").exists():
            print(f"{folder} is not there: nothing compared")
            return
        result = run(
            "verify",
            "--model",
            folder,
            "--expected",
            folder / "expected.safetensors",
            *options,
            timeout=900,
        )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertNotIn("FAIL", result.stdout)
        self.assertRegex(result.stdout, r"top-1 agreement 100 %")
        self.assertIn("greedy", result.stdout)
        # A tighter tolerance than float32 has must fail, or the comparison compares nothing.
        strict = run(
            "verify",
            "--model",
            folder,
            "--expected",
            folder / "expected.safetensors",
            "--tolerance",
            "1e-12",
            timeout=900,
        )
        self.assertEqual(strict.returncode, 65)
        self.assertIn("FAIL", strict.stdout)

    def test_gpt2_tiny(self):
        self.check(SHARED / "fixtures/gpt2-tiny")

    def test_llama_tiny(self):
        self.check(SHARED / "fixtures/llama-tiny")

    def test_smollm2_135m(self):
        self.check(SOURCE / "models/smollm2-135m", "--tolerance", "1e-3")


if __name__ == "__main__":
    unittest.main()
