"""A training run as its watcher sees it: records, evaluations, limits, threads."""

import json
import math
import os
import pathlib
import re
import signal
import subprocess
import time
import unittest

from run_support import RunCase, records, start_limited, steps_of, wait_for
from support import BINARY, Case, on_terminal, run, start, step_losses, weights


class FileSizeLimit(Case):
    def test_is_an_error_like_a_full_disk(self):
        model = self.folder / "run"
        self.must(*self.train_arguments(model, "--steps", 1, "--model.attention", "softmax"))
        for name, arguments in (
            ("train", self.train_arguments(self.folder / "limited", "--steps", 3)),
            (
                "prepare",
                [
                    "prepare",
                    "lm",
                    "--inputs",
                    self.folder / "train.txt",
                    "--tokenizer",
                    self.tokenizer,
                    "--output",
                    self.folder / "shards",
                ],
            ),
            (
                "convert",
                [
                    "convert",
                    "--model",
                    model / "checkpoints/latest",
                    "--output",
                    self.folder / "converted",
                ],
            ),
        ):
            process = start_limited(60_000, *arguments)
            text, _ = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 73, f"{name}: {text}")
            self.assertIn("File too large", text)


class Records(RunCase):
    def test_every_record_says_when_and_where_and_a_key_has_one_meaning(self):
        output, before = self.folder / "run", time.time()
        result = self.must(
            *self.train_arguments(output, "--steps", 6, "--eval-every", 3, "--checkpoint-every", 2),
            ranks=2,
        )
        all_records = records(output)
        self.assertEqual(
            [(r["event"], r["step"]) for r in all_records],
            [
                ("start", 0),
                ("step", 1),
                ("step", 2),
                ("checkpoint", 2),
                ("step", 3),
                ("evaluation", 3),
                ("checkpoint", 3),
                ("step", 4),
                ("checkpoint", 4),
                ("step", 5),
                ("step", 6),
                ("checkpoint", 6),
                ("evaluation", 6),
                ("end", 6),
            ],
        )
        for record in all_records:
            self.assertTrue(before <= record["time"] <= time.time(), record)
            self.assertEqual(record["tokens"], record["step"] * 8 * 32, record)
        for record in records(output, "step"):
            self.assertEqual((record["step_tokens"], record["objective"]), (8 * 32, "text"))
        evaluations = records(output, "evaluation")
        for record in evaluations:
            self.assertNotIn("loss", record)
            self.assertAlmostEqual(
                math.log(record["valid_perplexity"]), record["valid_loss"], places=6
            )
            self.assertGreater(record["valid_tokens"], 1000)
        best = min(evaluations, key=lambda record: record["valid_loss"])
        end = records(output, "end")[0]
        self.assertEqual(
            (end["best_step"], end["best_valid_loss"]), (best["step"], best["valid_loss"])
        )
        last = result.stderr.splitlines()[-1]
        self.assertIn("done: 6 steps, 1536 tokens in ", last)
        self.assertIn(f"at step {best['step']}; {output}/checkpoints/best", last)

    def test_a_resumed_run_has_each_step_once_and_no_half_line(self):
        output = self.folder / "cut"
        options = ["--schedule", "constant"]
        self.must(*self.train_arguments(output, *options, "--steps", 4))
        file = output / "metrics.jsonl"
        step = next(
            line
            for line in file.read_text().splitlines()
            if '"step": 4,' in line and '"event": "step"' in line
        )
        with file.open(
            "a"
        ) as appended:  # as a kill leaves it: steps that no checkpoint has, half a line
            appended.write(
                step.replace('"step": 4', '"step": 5')
                + "\n"
                + step.replace('"step": 4', '"step": 6')
                + "\n"
                + step[:40]
            )
        result = self.must(*self.train_arguments(output, *options, "--steps", 8, "--resume"))
        self.assertEqual(steps_of(output, "step"), list(range(1, 9)))
        self.assertIn("1 broken line(s) taken out", result.stderr)
        repeated = [
            json.loads(line)["step"]
            for line in (output / "metrics.jsonl.repeated").read_text().splitlines()
        ]
        self.assertEqual(repeated, [5, 6])
        self.assertEqual([path.name for path in output.iterdir() if ".tmp." in path.name], [])

    def test_the_log_file_has_what_was_said_of_every_start(self):
        output = self.folder / "logged"
        first = self.must(*self.train_arguments(output, "--steps", 2), ranks=2).stderr
        second = self.must(*self.train_arguments(output, "--steps", 4, "--resume")).stderr
        log = [
            line.split(" ", 1)[1] for line in (output / "train.log").read_text().splitlines()
        ]  # without the date
        self.assertEqual(log, [*first.splitlines(), *second.splitlines()])

    def test_a_refused_start_leaves_the_config_alone(self):
        output = self.folder / "config"
        self.must(*self.train_arguments(output, "--steps", 2))
        files = {
            name: (output / name).read_bytes()
            for name in ("config.toml", "metrics.jsonl", "train.log")
        }
        for more in (
            [],
            ["--resume", "--seed", 9],
            ["--resume", "--tokenizer", self.folder / "nowhere"],
        ):
            self.assertNotEqual(
                run(*self.train_arguments(output, "--steps", 4, *more)).returncode, 0
            )
            self.assertEqual(files, {name: (output / name).read_bytes() for name in files}, more)
        self.must(*self.train_arguments(output, "--steps", 4, "--resume", "--learning-rate", 1e-3))
        self.assertIn("learning-rate = 0.001", (output / "config.toml").read_text())
        changes = records(output, "config")[0]["changes"]
        self.assertIn("learning-rate: 0.003 -> 0.001", changes)
        self.assertIn("steps: 2 -> 4", changes)

    def test_a_file_system_without_locks_is_not_another_run(self):
        environment = {
            **os.environ,
            "LD_PRELOAD": os.environ["T2R_NO_FLOCK"],
            "ASAN_OPTIONS": "verify_asan_link_order=0",
        }
        result = subprocess.run(
            [BINARY, *map(str, self.train_arguments(self.folder / "unlocked", "--steps", 1))],
            capture_output=True,
            text=True,
            env=environment,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("cannot be locked (No locks available)", result.stderr)
        self.assertNotIn("another run", result.stderr)


class Evaluations(RunCase):
    def test_the_untouched_model_is_step_0_and_changes_nothing(self):
        plain, shown, tuned = (self.folder / name for name in ("plain", "shown", "tuned"))
        self.must(*self.train_arguments(plain, "--steps", 3))
        self.must(*self.train_arguments(shown, "--steps", 3, "--eval-at-start"))
        self.assertEqual(step_losses(plain), step_losses(shown))
        self.assertEqual(weights(plain), weights(shown))
        self.assertEqual(steps_of(shown, "evaluation"), [0, 3])
        # What one run ended with is what the next one begins with.
        self.must(
            "train",
            "--output",
            tuned,
            "--model",
            plain / "checkpoints/latest",
            "--train-data",
            self.folder / "train",
            "--valid-data",
            self.folder / "valid",
            "--sequence-length",
            32,
            "--batch-size",
            8,
            "--steps",
            2,
            "--learning-rate",
            1,
            "--clip-norm",
            0,
            "--eval-at-start",
        )
        self.assertEqual(
            records(tuned, "evaluation")[0]["valid_loss"],
            records(plain, "evaluation")[-1]["valid_loss"],
        )
        self.assertEqual(
            os.readlink(tuned / "checkpoints/best"), "step-00000002"
        )  # though step 0 was better

    def test_one_that_is_not_finite_is_never_the_best(self):
        output = self.folder / "nan"
        result = self.must(
            *self.train_arguments(
                output,
                "--steps",
                30,
                "--learning-rate",
                100,
                "--weight-decay",
                100,
                "--clip-norm",
                0,
                "--max-skipped-steps",
                100,
                "--eval-every",
                10,
            )
        )
        self.assertIsNone(records(output, "evaluation")[-1]["valid_loss"])
        self.assertIn("not finite, so never the best", result.stderr)
        self.assertNotIn("best_step", records(output, "end")[0])

    def test_a_terminal_shows_how_far_they_are(self):
        output, valid = self.folder / "terminal", [
            self.folder / name for name in ["valid"] + 3 * ["train"]
        ]  # takes seconds
        code, shown = on_terminal(
            *self.train_arguments(
                output, "--steps", 2, "--micro-batch-size", 1, "--valid-data", *valid
            )
        )
        self.assertEqual(code, 0, shown)
        self.assertRegex(
            shown, r"\r\x1b\[K\[#*\.*\] evaluating step 2: \d+ % of \d+ tokens, \d+ tok/s, eta "
        )
        code, shown = on_terminal(
            "evaluate",
            "--model",
            output / "checkpoints/latest",
            "--data",
            *valid,
            "--context",
            32,
            "--sequences-at-once",
            1,
        )
        self.assertEqual(code, 0, shown)
        self.assertRegex(shown, r"\r\x1b\[K\[#*\.*\] evaluating: \d+ % of \d+ tokens")

    def test_checkpoints_come_by_the_clock(self):
        output = self.folder / "clock"
        process = start(
            *self.train_arguments(output, "--steps", 1000000, "--checkpoint-minutes", 0.005),
            ranks=2,
        )
        wait_for(lambda: len(records(output, "checkpoint")) >= 3)
        text = self.stop(process, signal.SIGUSR1)
        self.assertEqual(process.returncode, 75, text)
        begun = [record["time"] - record["seconds"] for record in records(output, "checkpoint")]
        for a, b in zip(begun[:-2], begun[1:-1]):  # the last one comes when it comes
            self.assertGreater(b - a, 0.29)


class Threads(Case):
    def test_a_run_takes_the_threads_that_its_step_is_worth(self):
        def threads(name, *more):
            arguments = self.train_arguments(
                self.folder / name,
                "--model.layers",
                1,
                "--model.attention",
                "softmax",
                "--steps",
                1,
                *more,
            )
            return int(re.search(r"(\d+) thread\(s\) each", self.must(*arguments).stderr)[1])

        limits = [
            pathlib.Path("/sys/fs/cgroup", name)
            for name in ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu,cpuacct/cpu.cfs_quota_us")
        ]
        is_limited = any(
            path.exists() and path.read_text().split()[0] not in ("max", "-1") for path in limits
        )
        usable = 1 if is_limited else len(os.sched_getaffinity(0))
        large = ["--model.hidden-size", 128, "--sequence-length", 256, "--batch-size", 16]
        self.assertEqual(threads("small", "--batch-size", 1), 1)
        self.assertGreaterEqual(threads("large", *large), min(2, usable))
        # No more are at once than the rank's share, whatever --micro-batch-size allows.
        self.assertEqual(threads("share", "--batch-size", 1, "--micro-batch-size", 2**40), 1)
        self.assertEqual(threads("told", *large, "--threads", 3), 3)


if __name__ == "__main__":
    unittest.main()
