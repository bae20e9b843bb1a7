"""Training on GPUs as a user runs it. Needs one; what needs two is left out with one, and said."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time
import unittest
import unittest.mock

os.environ["T2R_TEST_ON_GPU"] = "1"  # before support is read

from support import BINARY, MPIRUN, Case, kill_processes_naming, run, start, step_losses, weights


def num_gpus():
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return len(listed.stdout.strip().splitlines()) if listed.returncode == 0 else 0


def relative(a, b):
    return abs(float(a) - float(b)) / abs(float(b))


class GpuCase(Case):
    FAMILIES = {
        "gpt2, one softmax layer": ["--model.family", "gpt2", "--model.softmax-layers", 1],
        # At the others' 3e-3 this one amplifies rounding: two instruction sets of one CPU differ by
        # 1.7e-4 within 20 steps.
        "llama, grouped queries": [
            "--model.family",
            "llama",
            "--model.heads",
            4,
            "--model.kv-heads",
            2,
            "--model.hidden-size",
            128,
            "--learning-rate",
            1e-3,
        ],
        "elu": ["--model.attention", "elu", "--model.feature-size", 0],
        "hedgehog": ["--model.attention", "hedgehog", "--model.feature-size", 64],
        # With T2R's kinks these amplify rounding, too: two instruction sets differ by up to 3e-4.
        "norms of heads": [
            "--model.family",
            "qwen3",
            "--model.attention",
            "hedgehog",
            "--model.feature-size",
            64,
        ],
        "norms behind branches": [
            "--model.family",
            "olmo2",
            "--model.attention",
            "hedgehog",
            "--model.feature-size",
            64,
        ],
    }

    def arguments(self, output, *more):
        # Head size 32, the smallest that the kernels have.
        return self.train_arguments(output, "--model.hidden-size", 64, *more)

    def train(self, name, *more, **options):
        output = self.folder / name
        self.must(*self.arguments(output, *more), **options)
        return output


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


@unittest.skipIf(num_gpus() == 1, "one GPU here")  # with none, all of this file fails instead
class TwoGpus(GpuCase):
    def test_two_ranks_give_what_one_gives_with_twice_the_batch(self):
        one = step_losses(self.train("one", "--steps", 20, "--precision", "float32"))
        two = step_losses(self.train("two", "--steps", 20, "--precision", "float32", ranks=2))
        for step in one:
            self.assertLess(relative(two[step], one[step]), 1e-6, f"step {step}")

    def test_bf16_ranks_give_what_one_gives(self):
        one = step_losses(self.train("one-bf16", "--steps", 20))
        two = step_losses(self.train("two-bf16", "--steps", 20, ranks=2))
        for step in one:
            self.assertLess(relative(two[step], one[step]), 2e-3, f"step {step}")

    def test_two_ranks_learn_from_a_teacher_what_one_learns(self):
        teacher = (
            self.train(
                "teaching", "--steps", 30, "--precision", "float32", "--model.attention", "softmax"
            )
            / "checkpoints"
            / "latest"
        )
        extra = [
            "--steps",
            10,
            "--precision",
            "float32",
            "--teacher",
            teacher,
            "--distillation",
            0.5,
        ]
        one, two = (
            step_losses(self.train(f"taught-{ranks}", *extra, ranks=ranks)) for ranks in (1, 2)
        )
        for step in one:
            self.assertLess(relative(two[step], one[step]), 1e-6, f"step {step}")

    def test_a_captured_step_is_the_step(self):
        captured = step_losses(self.train("captured-2", "--steps", 10, "--dropout", 0.1, ranks=2))
        launched = step_losses(
            self.train("launched-2", "--steps", 10, "--dropout", 0.1, "--cuda-graph=false", ranks=2)
        )
        self.assertEqual(captured, launched)

    def test_killed_rank_ends_the_job_which_resumes_bitwise(self):
        extra = [
            "--steps",
            600,
            "--checkpoint-every",
            150,
            "--dropout",
            0.1,
            "--deterministic",
            "--model.softmax-layers",
            1,
            "--log-every",
            1,
        ]
        whole = self.train("unharmed", *extra, ranks=2)
        output = self.folder / "killed"
        process = start(*self.arguments(output, *extra), ranks=2)
        drain = threading.Thread(target=process.stdout.read)  # a full pipe would stop the run
        drain.start()
        while not (output / "checkpoints" / "step-00000150").exists():
            self.assertIsNone(process.poll(), "the run ended before it could be killed")
            time.sleep(0.002)
        ranks = subprocess.run(
            ["pgrep", "-f", f"t2r_gpu.*{output}"], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        killed = time.monotonic()
        try:
            process.wait(timeout=10)
            self.assertLess(time.monotonic() - killed, 10)
            while (
                subprocess.run(
                    ["pgrep", "-f", f"t2r_gpu.*{output}"], capture_output=True
                ).returncode
                == 0
            ):
                self.assertLess(time.monotonic() - killed, 10, "a rank outlived the job")
                time.sleep(0.05)
        finally:
            kill_processes_naming(output)
            drain.join()
            process.stdout.close()
        self.assertNotEqual(process.returncode, 0)
        self.assertLess(max(step_losses(output)), 600, "the run had ended when it was killed")
        self.must(*self.arguments(output, *extra, "--resume"), ranks=2)
        self.assertEqual(step_losses(output), step_losses(whole))
        self.assertEqual(weights(output), weights(whole))

    def test_out_of_memory_on_one_rank_ends_all(self):
        for name, fraction, texts in (
            ("in-the-step", 0.004, ("out of GPU memory", "--micro-batch-size")),
            ("at-start", 1e-7, ("NCCL's first sum failed", "out of memory")),
        ):
            with self.subTest(name):
                output = self.folder / name
                rank = [
                    BINARY,
                    *map(str, self.arguments(output, "--steps", 2, "--batch-size", 8192)),
                ]
                limit = ["env", f"PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:{fraction}"]
                begun = time.monotonic()
                result = subprocess.run(
                    [*MPIRUN, "-n", "1", *rank, ":", "-n", "1", *limit, *rank],
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                self.assertLess(time.monotonic() - begun, 60)
                self.fails(result, 70, "rank 1", *texts)
                self.assertFalse(any((output / "checkpoints").glob("step-*")))

    def test_bench_train_on_two_ranks(self):
        arguments = [
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
            5,
            "--json",
        ]
        report = json.loads(self.must(*arguments, ranks=2).stdout)
        self.assertEqual(report["ranks"], 2)
        self.assertGreater(report["phases"]["all-reduce alone"], 0.0)


if __name__ == "__main__":
    if num_gpus() == 0:
        raise SystemExit("gpu_training_test.py needs a GPU")
    unittest.main()
