"""Training as a user runs it: ranks, resuming, full disks, benchmarks."""

import json
import os
import shutil
import signal
import subprocess
import time
import unittest

from support import BINARY, Case, on_terminal, relative, run, start, step_losses, weights


class Ranks(Case):
    def test_four_ranks_give_what_one_gives_with_four_times_the_batch(self):
        one, four = self.folder / "one", self.folder / "four"
        self.must(*self.train_arguments(one, "--steps", 20))
        self.must(*self.train_arguments(four, "--steps", 20), ranks=4)
        a, b = step_losses(one), step_losses(four)
        self.assertEqual(sorted(a), list(range(1, 21)))
        self.assertEqual(sorted(b), list(range(1, 21)))
        for step in a:  # float32 sums in another order: 1e-6 is the bar
            self.assertLess(relative(a[step], b[step]), 1e-6, f"step {step}")
        self.assertLess(
            float(a[20]), 0.8 * float(a[1]), "nothing was learned, so nothing was compared"
        )

    def test_gradient_accumulation_gives_the_same(self):
        whole, pieces = self.folder / "whole", self.folder / "pieces"
        self.must(*self.train_arguments(whole, "--steps", 10))
        self.must(*self.train_arguments(pieces, "--steps", 10, "--micro-batch-size", 3))
        a, b = step_losses(whole), step_losses(pieces)
        for step in range(1, 11):
            self.assertLess(relative(a[step], b[step]), 1e-6)

    def test_different_options_on_two_ranks_are_refused(self):
        a = [str(x) for x in self.train_arguments(self.folder / "mixed", "--steps", 2)]
        b = [str(x) for x in self.train_arguments(self.folder / "mixed", "--steps", 3)]
        binary = os.environ["T2R_BINARY"]
        result = subprocess.run(
            [
                "mpirun",
                "--oversubscribe",
                "--bind-to",
                "none",
                "-n",
                "1",
                binary,
                *a,
                ":",
                "-n",
                "1",
                binary,
                *b,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.fails(result, 78, "different options", "rank 0 has steps = 2", "rank 1 has steps = 3")
        self.assertFalse((self.folder / "mixed" / "checkpoints").exists())


class Benchmark(Case):
    def test_bench_train_measures_every_rank(self):
        result = self.must(
            "bench",
            "train",
            "--device",
            "cpu",
            "--json",
            "--model.layers",
            1,
            "--model.hidden-size",
            64,
            "--model.heads",
            2,
            "--vocab-size",
            100,
            "--sequence-length",
            32,
            "--batch-size-per-rank",
            3,
            "--micro-batch-size",
            2,
            "--timed-steps",
            5,
            "--untimed-steps",
            1,
            "--peak-tflops",
            1,
            ranks=2,
        )
        report = json.loads(result.stdout)
        self.assertEqual(
            (report["ranks"], report["batch_size"], report["sequence_length"]), (2, 3, 32)
        )
        self.assertAlmostEqual(
            report["tokens_per_second"],
            2 * 3 * 32 / report["seconds_median"],
            delta=1e-6 * report["tokens_per_second"],
        )
        self.assertLessEqual(report["seconds_p10"], report["seconds_median"])
        self.assertLessEqual(report["seconds_median"], report["seconds_p90"])
        self.assertGreater(report["mfu"], 0)
        # Tied 100 x 64 and 32 x 64 embeddings, a block of GPT-2, the map of 2 heads with 32
        # features, the last norm; 6 operations for each but the positions, and 3 x 2 x 2 heads x 32
        # x (4 x 32) of linear attention.
        parameters = (
            100 * 64
            + 32 * 64
            + (4 * 64 + 64 * 192 + 192 + 64 * 64 + 64 + 64 * 256 + 256 + 256 * 64 + 64)
            + 2 * 32 * 33
            + 128
        )
        self.assertEqual(report["parameters"], parameters)
        self.assertAlmostEqual(
            report["tflops_per_rank"] * 1e12 * report["seconds_median"] / (3 * 32),
            6 * (parameters - 32 * 64) + 49152,
            delta=1e-6 * 6 * parameters,
        )
        self.assertGreaterEqual(report["exposed_seconds"], 0)


class SharedData(Case):
    def train_in(self, folders, output):
        """One rank in each folder, with the shards that lie there."""
        command = ["mpirun", "--oversubscribe", "--bind-to", "none"]
        for folder in folders:
            arguments = self.train_arguments(output, "--steps", 2)
            arguments[arguments.index("--train-data") + 1] = "train"
            command += ["-wdir", folder, "-n", "1", BINARY, *arguments, ":"]
        return subprocess.run(
            [*map(str, command[:-1])], capture_output=True, text=True, timeout=120
        )

    def test_one_rank_of_a_host_verifies_for_all(self):
        whole, damaged = self.folder / "whole", self.folder / "damaged"
        for folder in (whole, damaged):
            shutil.copytree(self.folder / "train", folder / "train")
        shard = next((damaged / "train").glob("*.h5"))
        data = bytearray(shard.read_bytes())
        data[len(data) // 4 * 2] ^= 1  # the low byte of a token: another id of the vocabulary
        shard.write_bytes(data)
        refused = self.train_in([damaged, whole], self.folder / "refused")
        self.fails(refused, 65, f"rank 0: train/{shard.name}", "damaged: the content's hash is")
        self.assertFalse((self.folder / "refused" / "checkpoints").exists())
        # Only a rank that does not verify takes it; on a real host both read the same files.
        taken = self.train_in([whole, damaged], self.folder / "taken")
        self.assertEqual(taken.returncode, 0, taken.stderr)
        self.assertEqual(self.train_in([damaged], self.folder / "alone").returncode, 65)


class Progress(Case):
    """A bar that is written over on a terminal, plain lines elsewhere."""

    def check(self, *arguments, text):
        code, shown = on_terminal(*arguments)
        self.assertEqual(code, 0, shown)
        self.assertIn(f"\r\x1b[K[{20 * '#'}] {text}", shown)
        self.assertTrue(shown.endswith("\n"), shown)

    def test_prepare(self):
        def arguments(name):
            return [
                "prepare",
                "lm",
                "--inputs",
                self.folder / "valid.txt",
                "--tokenizer",
                self.tokenizer,
                "--output",
                self.folder / name,
            ]

        size = (self.folder / "valid.txt").stat().st_size
        self.check(*arguments("shown"), text=f"prepared 100 % of {size} bytes")
        elsewhere = self.must(*arguments("logged")).stderr
        self.assertIn(f"info prepared 100 % of {size} bytes\n", elsewhere)
        self.assertNotIn("\r", elsewhere)

    def test_train(self):
        self.check(
            *self.train_arguments(self.folder / "shown", "--steps", 3), text="step 3/3  epoch "
        )
        elsewhere = self.must(*self.train_arguments(self.folder / "logged", "--steps", 3)).stderr
        self.assertIn("info step 3/3  epoch ", elsewhere)
        self.assertNotIn("\r", elsewhere)


class Resume(Case):
    def test_ten_steps_equal_five_and_five_bitwise(self):
        for ranks in (1, 2):
            options = ["--dropout", 0.1, "--schedule", "constant", "--checkpoint-every", 5]
            whole, parts = self.folder / f"whole{ranks}", self.folder / f"parts{ranks}"
            self.must(*self.train_arguments(whole, *options, "--steps", 10), ranks=ranks)
            self.must(*self.train_arguments(parts, *options, "--steps", 5), ranks=ranks)
            self.must(
                *self.train_arguments(parts, *options, "--steps", 10, "--resume"), ranks=ranks
            )
            self.assertEqual(step_losses(whole), step_losses(parts))
            self.assertEqual(weights(whole), weights(parts))
            for part in range(ranks):
                name = f"optimizer-{part:05d}-of-{ranks:05d}.safetensors"
                self.assertEqual(
                    (whole / "checkpoints/latest" / name).read_bytes(),
                    (parts / "checkpoints/latest" / name).read_bytes(),
                )

    def test_another_world_size_keeps_the_order_of_samples(self):
        options = ["--schedule", "constant"]
        whole, parts = self.folder / "whole", self.folder / "parts"
        self.must(*self.train_arguments(whole, *options, "--steps", 12), ranks=2)
        self.must(*self.train_arguments(parts, *options, "--steps", 4), ranks=2)
        self.must(*self.train_arguments(parts, *options, "--steps", 8, "--resume"), ranks=1)
        self.must(*self.train_arguments(parts, *options, "--steps", 12, "--resume"), ranks=4)
        a, b = step_losses(whole), step_losses(parts)
        for step in range(1, 13):  # another sample would change a loss by whole per cents
            self.assertLess(relative(a[step], b[step]), 1e-6, f"step {step}")
        manifest = json.loads((parts / "checkpoints/latest/manifest.json").read_text())
        self.assertEqual((manifest["sample_cursor"], manifest["world_size"]), (96, 4))

    def test_other_options_are_refused(self):
        output = self.folder / "identity"
        self.must(*self.train_arguments(output, "--steps", 2))
        self.fails(
            run(*self.train_arguments(output, "--steps", 4)), 78, "holds a run already", "--resume"
        )
        self.fails(
            run(*self.train_arguments(output, "--steps", 4, "--resume", "--seed", 9)),
            78,
            "made with other options",
            "seed = 1",
            "seed = 9",
        )

    def test_fewer_steps_than_it_has_are_refused(self):
        output = self.folder / "fewer"
        self.must(*self.train_arguments(output, "--steps", 4, "--checkpoint-every", 2))
        self.fails(
            run(*self.train_arguments(output, "--steps", 3, "--resume")),
            78,
            "steps = 3, allowed: 4 or more",
            str(output),
        )
        arguments = self.train_arguments(output, "--tokens", 3 * 8 * 32, "--resume")
        self.fails(
            run(*arguments, ranks=2), 78, f"tokens = {3 * 8 * 32}, allowed: {4 * 8 * 32} or more"
        )
        self.must(*self.train_arguments(output, "--steps", 4, "--resume"))

    def test_damaged_checkpoint_is_left_for_the_older_one(self):
        output, whole = self.folder / "damaged", self.folder / "undamaged"
        options = ["--schedule", "constant", "--checkpoint-every", 3]
        self.must(*self.train_arguments(whole, *options, "--steps", 7))
        self.must(*self.train_arguments(output, *options, "--steps", 6))
        for damage in ("flip", "truncate", "manifest"):
            copy = self.folder / f"copy-{damage}"
            shutil.copytree(output, copy, symlinks=True)
            newest = copy / "checkpoints/step-00000006"
            if damage == "flip":
                data = bytearray((newest / "model.safetensors").read_bytes())
                data[-100] ^= 1
                (newest / "model.safetensors").write_bytes(data)
            elif damage == "truncate":
                part = newest / "optimizer-00000-of-00001.safetensors"
                part.write_bytes(part.read_bytes()[:-4])
            else:
                (newest / "manifest.json").write_text("{")
            result = self.must(*self.train_arguments(copy, *options, "--steps", 7, "--resume"))
            self.assertIn("step-00000006 is damaged and not used", result.stderr)
            self.assertIn("resumed from", result.stderr)
            self.assertEqual(step_losses(copy), step_losses(whole))
            self.assertEqual(weights(copy), weights(whole))
            self.assertEqual(
                json.loads((copy / "checkpoints/latest/manifest.json").read_text())["step"], 7
            )


class Output(Case):
    def test_full_disk_keeps_training_and_stops_after_failed_saves(self):
        output = self.folder / "full"
        self.must(*self.train_arguments(output, "--steps", 2))
        limit = 30_000  # more than metrics, less than the weights
        result = run(
            *self.train_arguments(
                output, "--steps", 12, "--resume", "--checkpoint-every", 2, "--max-failed-saves", 3
            ),
            limit_bytes=limit,
        )
        self.fails(result, 73, "checkpoint not saved", "1 in a row", "3 in a row", "File too large")
        self.assertEqual(max(step_losses(output)), 8)
        checkpoints = sorted(p.name for p in (output / "checkpoints").iterdir())
        self.assertEqual(
            checkpoints,
            (
                ["latest", "step-00000002"]
                if "best" not in checkpoints
                else ["best", "latest", "step-00000002"]
            ),
        )
        self.must(*self.train_arguments(output, "--steps", 3, "--resume"))

    def test_second_run_on_a_folder_is_refused(self):
        output = self.folder / "shared"
        first = start(*self.train_arguments(output, "--steps", 100000))
        try:
            deadline = time.time() + 60
            while not (output / "metrics.jsonl").exists() and time.time() < deadline:
                time.sleep(0.05)
            again = self.train_arguments(output, "--steps", 3, "--resume")
            self.fails(run(*again), 73, "another run is using this folder", f"process {first.pid}")
            (output / "lock").unlink()  # as somebody does who takes it for left over
            self.fails(run(*again), 73, "another run is using this folder")
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.communicate()

    def test_best_and_last_checkpoints_stay(self):
        output = self.folder / "kept"
        self.must(
            *self.train_arguments(
                output,
                "--steps",
                12,
                "--checkpoint-every",
                2,
                "--keep-checkpoints",
                2,
                "--eval-every",
                6,
            )
        )
        names = sorted(p.name for p in (output / "checkpoints").iterdir())
        self.assertEqual(names, ["best", "latest", "step-00000010", "step-00000012"])
        self.assertEqual(os.readlink(output / "checkpoints/latest"), "step-00000012")

    def test_an_evaluation_that_fails_does_not_take_the_training_with_it(self):
        for ranks in (1, 2):
            output, valid = self.folder / f"unread-{ranks}", self.folder / f"valid-{ranks}"
            shutil.copytree(self.folder / "valid", valid)
            process = start(
                *self.train_arguments(output, "--steps", 60, "--valid-data", valid), ranks=ranks
            )
            while not (output / "metrics.jsonl").exists() or not step_losses(output):
                self.assertIsNone(process.poll(), "the run ended before its data could be damaged")
                time.sleep(0.002)
            shard = next(valid.glob("*.h5"))
            os.truncate(shard, shard.stat().st_size // 2)
            text, _ = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 65, text)
            self.assertIn(shard.name, text)
            self.assertEqual(os.readlink(output / "checkpoints" / "latest"), "step-00000060")

    def test_best_is_what_was_saved_with_the_best_evaluation(self):
        output = self.folder / "worse-at-the-end"
        self.must(
            *self.train_arguments(
                output,
                "--steps",
                40,
                "--eval-every",
                20,
                "--checkpoint-every",
                20,
                "--schedule",
                "constant",
                "--learning-rate",
                3e-2,
            )
        )
        again = [
            *self.train_arguments(
                output,
                "--steps",
                44,
                "--checkpoint-every",
                0,
                "--schedule",
                "constant",
                "--resume",
                "--learning-rate",
                3.0,
            )
        ]
        self.must(*again)  # which does it no good
        links = {name: os.readlink(output / "checkpoints" / name) for name in ("best", "latest")}
        self.assertEqual(links["latest"], "step-00000044")
        self.assertIn(links["best"], ("step-00000020", "step-00000040"))

    def test_infinite_losses_are_skipped_and_end_the_run(self):
        output = self.folder / "nan"
        self.fails(
            run(
                *self.train_arguments(
                    output,
                    "--steps",
                    50,
                    "--learning-rate",
                    100,
                    "--weight-decay",
                    100,
                    "--clip-norm",
                    0,
                    "--max-skipped-steps",
                    2,
                )
            ),
            74,
            "not finite in 3 steps in a row",
            "learning-rate",
        )


if __name__ == "__main__":
    unittest.main()
