"""Training on a GPU as a user runs it."""

import json
import os
import signal
import time
import unittest
import unittest.mock

from gpu_support import GpuCase, num_gpus  # before support: it says that tests run on a GPU
from support import relative, start, step_losses, weights


class Parity(GpuCase):
    def test_float32_losses_are_the_cpus(self):
        for index, (family, extra) in enumerate(self.FAMILIES.items()):
            with self.subTest(family):
                losses = [
                    step_losses(
                        self.train(
                            f"{device}{index}",
                            "--steps",
                            20,
                            "--device",
                            device,
                            "--precision",
                            "float32",
                            *extra,
                        )
                    )
                    for device in ("cpu", "cuda")
                ]
                for step in losses[0]:
                    self.assertLess(
                        relative(losses[1][step], losses[0][step]), 1e-5, f"step {step}"
                    )
                self.assertLess(
                    float(losses[0][20]),
                    0.8 * float(losses[0][1]),
                    "nothing was learned, so nothing was compared",
                )

    def test_bf16_follows_the_curve(self):
        for index, (family, extra) in enumerate(self.FAMILIES.items()):
            with self.subTest(family):
                exact = step_losses(
                    self.train(
                        f"exact{index}",
                        "--steps",
                        200,
                        "--device",
                        "cuda",
                        "--precision",
                        "float32",
                        *extra,
                    )
                )
                rounded = step_losses(
                    self.train(f"rounded{index}", "--steps", 200, "--device", "cuda", *extra)
                )
                last = range(181, 201)
                mean = [
                    sum(float(losses[step]) for step in last) / len(last)
                    for losses in (rounded, exact)
                ]
                self.assertLess(relative(*mean), 0.01)

    def test_a_captured_step_is_the_step(self):
        captured = step_losses(self.train("captured", "--steps", 10, "--dropout", 0.1))
        launched = step_losses(
            self.train("launched", "--steps", 10, "--dropout", 0.1, "--cuda-graph=false")
        )
        self.assertEqual(captured, launched)

    def test_recomputing_gives_the_same_bits_in_less_memory(self):
        losses = {
            what: step_losses(
                self.train(
                    f"recompute-{what}", "--steps", 10, "--dropout", 0.1, "--recompute", what
                )
            )
            for what in ("none", "mlps", "all")
        }
        self.assertEqual(losses["mlps"], losses["none"])
        self.assertEqual(losses["all"], losses["none"])
        memory = {
            what: json.loads(
                self.must(
                    "bench",
                    "train",
                    "--model.layers",
                    4,
                    "--model.hidden-size",
                    256,
                    "--model.heads",
                    4,
                    "--vocab-size",
                    512,
                    "--sequence-length",
                    256,
                    "--batch-size-per-rank",
                    64,
                    "--timed-steps",
                    2,
                    "--json",
                    "--recompute",
                    what,
                ).stdout
            )["peak_memory_bytes"]
            for what in losses
        }
        self.assertLess(memory["mlps"], 0.8 * memory["none"])
        self.assertLess(memory["all"], 0.8 * memory["mlps"])

    def test_trace_lists_the_kernels(self):
        trace = self.folder / "trace.json"
        report = json.loads(
            self.must(
                "bench",
                "train",
                "--model.layers",
                2,
                "--model.hidden-size",
                128,
                "--model.heads",
                2,
                "--vocab-size",
                512,
                "--sequence-length",
                128,
                "--batch-size-per-rank",
                4,
                "--timed-steps",
                2,
                "--json",
                "--trace",
                trace,
            ).stdout
        )
        attention = [kernel for kernel in report["kernels"] if "causal_backward" in kernel["name"]]
        self.assertEqual(sum(kernel["count"] for kernel in attention), 2)
        self.assertIn("traceEvents", json.loads(trace.read_text()))

    def test_micro_batches_give_the_batch(self):
        for precision, bar in (("float32", 1e-6), ("bf16", 2e-3)):
            whole = step_losses(
                self.train(f"whole-{precision}", "--steps", 10, "--precision", precision)
            )
            pieces = step_losses(
                self.train(
                    f"pieces-{precision}",
                    "--steps",
                    10,
                    "--precision",
                    precision,
                    "--micro-batch-size",
                    3,
                )
            )
            for step in whole:
                self.assertLess(
                    relative(pieces[step], whole[step]), bar, f"{precision}, step {step}"
                )


class Resuming(GpuCase):
    EXTRA = [
        "--steps",
        10,
        "--dropout",
        0.1,
        "--deterministic",
        "--checkpoint-every",
        5,
        "--model.softmax-layers",
        1,
    ]

    def test_resumed_run_is_the_run_bitwise(self):
        whole = self.train("whole", *self.EXTRA)
        halves = self.folder / "halves"
        process = start(*self.arguments(halves, *self.EXTRA, "--log-every", 1))
        while not (halves / "checkpoints" / "step-00000005").exists():
            self.assertIsNone(process.poll(), "the run ended before it could be killed")
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        self.must(*self.arguments(halves, *self.EXTRA, "--resume"))
        self.assertEqual(step_losses(whole), step_losses(halves))
        self.assertEqual(weights(whole), weights(halves))

    def test_a_checkpoint_goes_to_the_cpu_and_back(self):
        folder = (
            self.train("gpu", "--steps", 10, "--precision", "float32") / "checkpoints" / "latest"
        )
        perplexity = {}
        for device in ("cpu", "cuda"):
            result = self.must(
                "evaluate",
                "--model",
                folder,
                "--data",
                self.folder / "valid",
                "--context",
                32,
                "--device",
                device,
                "--precision",
                "float32",
                "--json",
            )
            perplexity[device] = json.loads(result.stdout)["perplexity_per_token"]
        self.assertLess(relative(perplexity["cuda"], perplexity["cpu"]), 1e-5)
        texts = {
            device: self.must(
                "generate",
                "--model",
                folder,
                "--prompt",
                "the cat",
                "--max-new-tokens",
                40,
                "--ignore-end",
                "--device",
                device,
                "--precision",
                "float32",
            ).stdout
            for device in ("cpu", "cuda")
        }
        self.assertEqual(texts["cpu"], texts["cuda"])

    def test_attention_transfer(self):
        teacher = self.train(
            "teacher", "--steps", 30, "--precision", "float32", "--model.attention", "softmax"
        )
        converted = self.folder / "converted"
        self.must(
            "convert",
            "--model",
            teacher / "checkpoints" / "latest",
            "--output",
            converted,
            "--feature-size",
            16,
        )
        losses = []
        for device in ("cpu", "cuda"):
            output = self.folder / f"transfer-{device}"
            self.must(
                "train",
                "--output",
                output,
                "--model",
                converted,
                "--train-data",
                self.folder / "train",
                "--sequence-length",
                32,
                "--batch-size",
                8,
                "--steps",
                12,
                "--transfer-steps",
                6,
                "--device",
                device,
                "--precision",
                "float32",
            )
            lines = [
                json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()
            ]
            losses.append(
                [line["loss"] for line in lines if line["event"] in ("step", "transfer_step")]
            )
        self.assertEqual(len(losses[0]), 12)
        for on_cpu, on_gpu in zip(*losses):
            self.assertLess(relative(on_gpu, on_cpu), 1e-4)

    def test_distillation(self):
        teacher = (
            self.train(
                "distilling",
                "--steps",
                30,
                "--precision",
                "float32",
                "--model.attention",
                "softmax",
            )
            / "checkpoints"
            / "latest"
        )
        converted = self.folder / "to-distill"
        self.must("convert", "--model", teacher, "--output", converted, "--feature-size", 16)

        def losses(name, *more):
            output = self.folder / f"distilled-{name}"
            self.must(
                "train",
                "--output",
                output,
                "--model",
                converted,
                "--teacher",
                teacher,
                "--distillation",
                0.5,
                "--train-data",
                self.folder / "train",
                "--sequence-length",
                32,
                "--batch-size",
                8,
                "--steps",
                12,
                *more,
            )
            return step_losses(output)

        for stage, bar in (("alone", 1e-5), ("behind transfer", 1e-4)):
            more = [] if stage == "alone" else ["--transfer-steps", 4]
            on_cpu = losses(f"cpu-{stage}", "--device", "cpu", *more)
            on_gpu = losses(f"cuda-{stage}", "--precision", "float32", *more)
            self.assertEqual(len(on_cpu), 12 - len(more) * 2)
            for step in on_cpu:
                self.assertLess(relative(on_gpu[step], on_cpu[step]), bar, f"{stage}, step {step}")
        self.assertEqual(
            losses("captured", "--dropout", 0.1),
            losses("launched", "--dropout", 0.1, "--cuda-graph=false"),
        )


if __name__ == "__main__":
    if num_gpus() == 0:
        raise SystemExit("gpu_training_test.py needs a GPU")
    unittest.main()
