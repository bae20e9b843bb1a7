"""Generation on a GPU as a user runs it, and what a GPU refuses."""

import json
import os
import shutil
import time
import unittest
import unittest.mock

from gpu_support import GpuCase, num_gpus  # before support: it says that tests run on a GPU
from support import run


class Generation(GpuCase):
    """Captured steps, launched ones and the CPU write the same text."""

    KINDS = {
        "t2r": [],
        "softmax": ["--model.attention", "softmax"],
        "mixed": ["--model.softmax-layers", 1],
        "elu": ["--model.attention", "elu", "--model.feature-size", 0],
        "hedgehog": ["--model.attention", "hedgehog", "--model.feature-size", 64],
        "gpt2": ["--model.family", "gpt2", "--model.softmax-layers", 1],
    }

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.models = {}
        for kind, options in cls.KINDS.items():
            output = cls.folder / f"generate-{kind}"
            cls.must(
                *cls.train_arguments(
                    cls,
                    output,
                    "--model.hidden-size",
                    64,
                    "--steps",
                    60,
                    "--precision",
                    "float32",
                    "--model.max-positions",
                    256,
                    *options,
                )
            )
            cls.models[kind] = output / "checkpoints" / "latest"

    def generate(self, kind, *more, **options):
        return self.must(
            "generate", "--model", self.models[kind], "--prompt", "the cat", *more, **options
        )

    def text(self, kind, *more):
        return self.generate(kind, *more).stdout

    def test_captured_launched_and_cpu_text_agree(self):
        greedy = ["--max-new-tokens", 150, "--ignore-end", "--precision", "float32"]
        sampled = [
            *greedy,
            "--temperature",
            0.9,
            "--top-k",
            40,
            "--top-p",
            0.95,
            "--seed",
            5,
            "--sequences-at-once",
            3,
        ]
        others = [
            [*greedy, "--temperature", 1.1, "--seed", 9],
            [*greedy, "--temperature", 0.8, "--top-p", 0.9, "--sequences-at-once", 20],
        ]
        for kind in self.KINDS:
            for options in (greedy, sampled, *(others if kind == "t2r" else [])):
                with self.subTest(kind, options=options):
                    captured = self.text(kind, *options, "--device", "cuda")
                    self.assertGreater(len(captured), 150)
                    self.assertEqual(
                        captured,
                        self.text(kind, *options, "--device", "cuda", "--cuda-graph=false"),
                    )
                    self.assertEqual(captured, self.text(kind, *options, "--device", "cpu"))

    def test_captured_bf16_text_is_the_launched_one(self):
        for kind in ("t2r", "mixed", "elu", "hedgehog", "gpt2"):
            for options in (
                [],
                ["--temperature", 0.9, "--seed", 5, "--sequences-at-once", 3],
                ["--sequences-at-once", 20],
            ):
                with self.subTest(kind, options=options):
                    options = [
                        "--max-new-tokens",
                        100,
                        "--ignore-end",
                        "--device",
                        "cuda",
                        *options,
                    ]
                    self.assertEqual(
                        self.text(kind, *options), self.text(kind, *options, "--cuda-graph=false")
                    )

    def test_a_cache_that_grows_goes_on(self):
        options = [
            "--max-new-tokens",
            2300,
            "--ignore-end",
            "--precision",
            "float32",
        ]  # past the first two captured capacities
        for kind in ("softmax", "t2r"):
            with self.subTest(kind):
                captured = self.text(kind, *options, "--device", "cuda")
                self.assertEqual(
                    captured, self.text(kind, *options, "--device", "cuda", "--cuda-graph=false")
                )
                cpu = self.text(kind, *options, "--device", "cpu")
                self.assertEqual(captured[:1000], cpu[:1000])  # rounding may part them late

    def test_the_end_token_stops(self):
        copy = self.folder / "ends"
        shutil.copytree(self.models["softmax"].resolve(), copy)
        (copy / "manifest.json").unlink()  # config.json is changed below
        config = json.loads((copy / "config.json").read_text())

        def result(end, *more):
            (copy / "config.json").write_text(json.dumps({**config, "eos_token_id": end}))
            printed = json.loads(
                self.must(
                    "generate",
                    "--model",
                    copy,
                    "--prompt",
                    "the cat",
                    "--max-new-tokens",
                    120,
                    "--json",
                    "--precision",
                    "float32",
                    *more,
                ).stdout
            )
            return printed["tokens"], printed["state_bytes"], printed["prompt_tokens"]

        for first in range(3, 43):  # tokens one of which the model writes, but not at once
            end = list(range(first, 320, 40))
            on_cpu = result(end, "--device", "cpu")
            if 2 < on_cpu[0] - on_cpu[2] < 110:
                break
        else:
            self.fail("no token ends a text")
        self.assertEqual(result(end, "--device", "cuda"), on_cpu)
        self.assertEqual(result(end, "--device", "cuda", "--cuda-graph=false"), on_cpu)

    def test_a_prompt_of_one_token(self):
        for kind in self.KINDS:
            with self.subTest(kind):
                options = [
                    "--prompt",
                    "a",
                    "--max-new-tokens",
                    40,
                    "--ignore-end",
                    "--precision",
                    "float32",
                ]
                texts = {
                    device: self.must(
                        "generate", "--model", self.models[kind], *options, "--device", device
                    ).stdout
                    for device in ("cpu", "cuda")
                }
                self.assertEqual(texts["cpu"], texts["cuda"])

    def test_learned_positions_end_a_text_and_refuse_a_longer_prompt(self):
        result = self.must(
            "generate",
            "--model",
            self.models["gpt2"],
            "--prompt",
            "the cat",
            "--max-new-tokens",
            600,
            "--ignore-end",
            "--device",
            "cuda",
        )
        self.assertIn("the model has 256 positions", result.stderr)
        result = run(
            "generate",
            "--model",
            self.models["gpt2"],
            "--prompt",
            "the cat " * 200,
            "--device",
            "cuda",
        )
        self.fails(result, 78, "learned position table 256 rows")

    def test_bench_generate(self):
        for kind in self.KINDS:
            with self.subTest(kind):
                lines = self.must(
                    "bench",
                    "generate",
                    "--model",
                    self.models[kind],
                    "--lengths",
                    64,
                    128,
                    "--sequences-at-once",
                    2,
                    "--timed-steps",
                    8,
                    "--temperature",
                    0.8,
                    "--top-k",
                    5,
                    "--json",
                ).stdout.splitlines()
                short, long = map(json.loads, lines)
                self.assertGreater(short["seconds_median"], 0)
                self.assertGreater(short["peak_memory_bytes"], short["state_bytes"])
                if kind in ("t2r", "elu", "hedgehog"):
                    self.assertEqual(short["state_bytes"], long["state_bytes"])
                else:
                    self.assertGreater(long["state_bytes"], short["state_bytes"])

    def test_bench_generate_goes_on_behind_a_length_that_does_not_fit(self):
        lines = self.must(
            "bench",
            "generate",
            "--model.family",
            "llama",
            "--model.attention",
            "softmax",
            "--model.layers",
            2,
            "--model.hidden-size",
            128,
            "--model.heads",
            2,
            "--vocab-size",
            512,
            "--lengths",
            2_000_000_000,
            64,
            "--timed-steps",
            8,
            "--json",
        ).stdout.splitlines()
        too_long, short = map(json.loads, lines)
        self.assertEqual(too_long["error"], "out of GPU memory")
        self.assertGreater(short["seconds_median"], 0)


class Errors(GpuCase):
    def test_out_of_memory_says_what_to_do(self):
        result = run(
            *self.arguments(
                self.folder / "big",
                "--steps",
                2,
                "--model.layers",
                4,
                "--model.hidden-size",
                2048,
                "--model.heads",
                16,
                "--sequence-length",
                256,
                "--batch-size",
                65536,
            )
        )
        self.fails(result, 70, "out of GPU memory", "--micro-batch-size")
        self.assertFalse(any((self.folder / "big" / "checkpoints").glob("step-*")))

    def test_head_size_that_the_kernels_do_not_have(self):
        result = run(*self.arguments(self.folder / "odd", "--steps", 2, "--model.hidden-size", 96))
        self.fails(
            result, 78, "head size = 48, allowed on a GPU: 32, 64, 128; run with --device cpu"
        )

    def test_fewer_gpus_than_ranks(self):
        gpus = num_gpus()
        self.refuses_ranks(gpus + 1, "GPU" if gpus == 1 else "GPUs", gpus)

    def test_two_ranks_on_one_gpu(self):
        self.refuses_ranks(2, "GPU", 1, CUDA_VISIBLE_DEVICES="0")

    def refuses_ranks(self, ranks, unit, gpus, **environment):
        output = self.folder / f"ranks-{ranks}-{gpus}"
        begun = time.monotonic()
        with unittest.mock.patch.dict(os.environ, environment):
            result = run(*self.arguments(output, "--steps", 2), ranks=ranks)
        self.assertLess(time.monotonic() - begun, 30)
        self.fails(
            result,
            78,
            f"[0/{ranks}] error ",
            f"has {gpus} {unit} but {ranks} ranks: every rank needs a GPU of its own",
        )
        self.assertEqual(result.stderr.count("every rank needs a GPU of its own"), 1)
        self.assertFalse(any((output / "checkpoints").glob("step-*")))


if __name__ == "__main__":
    unittest.main()
