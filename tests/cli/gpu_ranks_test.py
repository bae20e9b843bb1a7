"""Training on two GPUs as a user runs it; left out where there is one, and said."""

import json
import os
import signal
import subprocess
import threading
import time
import unittest
import unittest.mock

from gpu_support import GpuCase, num_gpus  # before support: it says that tests run on a GPU
from support import BINARY, MPIRUN, kill_processes_naming, relative, start, step_losses, weights


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
    unittest.main()
