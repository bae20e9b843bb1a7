"""Signals that a training run hears: what is saved, what it says, what it ends with."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import time
import unittest

from run_support import RunCase, read_or_nothing, records, start_limited, steps_of, wait_for
from support import BINARY, Case, kill_processes_naming, relative, start, step_losses


class SignalsInEvaluations(RunCase):
    def test_in_the_last_one_all_is_saved_and_a_resumed_run_makes_up_for_it(self):
        for ranks, number in ((1, signal.SIGTERM), (2, signal.SIGUSR1)):
            output = self.folder / f"last-{ranks}"
            process = start(*self.long_evaluation(output), ranks=ranks)
            wait_for(lambda: steps_of(output, "checkpoint") == [2])
            text = self.stop(process, number)
            self.assertEqual(process.returncode, 75, text)
            self.assertIn(f"t2r: {number.name}: stopping", text)
            self.assertEqual(os.readlink(output / "checkpoints/latest"), "step-00000002")
            self.assertEqual(records(output, "evaluation"), [])
            self.must(*self.train_arguments(output, "--steps", 2, "--resume"), ranks=ranks)
            self.assertEqual(steps_of(output, "evaluation"), [2])
            self.assertEqual(os.readlink(output / "checkpoints/best"), "step-00000002")
            # Once more: the last evaluation is taken again and stands there once.
            self.must(*self.train_arguments(output, "--steps", 2, "--resume"), ranks=ranks)
            self.assertEqual(steps_of(output, "evaluation"), [2])

    def test_on_the_way(self):
        output = self.folder / "way"
        options = ["--eval-every", 2, "--checkpoint-every", 2, "--steps", 4]
        process = start(*self.long_evaluation(output, *options))
        wait_for(lambda: steps_of(output, "checkpoint") == [2])
        text = self.stop(process, signal.SIGINT)
        self.assertEqual(process.returncode, 75, text)
        self.assertEqual(steps_of(output, "step"), [1, 2])
        self.assertEqual(steps_of(output, "stop"), [2])
        last = text.splitlines()[-1]
        self.assertIn("stopped by a signal, saved: 2 steps, 512 tokens in ", last)
        self.assertIn(f"; {output}/checkpoints/latest; go on with --resume", last)
        self.must(*self.train_arguments(output, *options, "--resume"))
        self.assertEqual(steps_of(output, "evaluation"), [2, 4])


class SignalsAtTheStart(RunCase):
    """A file of options that is a pipe holds a run in its first lines, before MPI is up."""

    def stop_at_the_start(self, command, number, *more):
        pipe = self.folder / f"options-{command}-{number.name}"
        os.mkfifo(pipe)
        process = start(command, "--config", pipe, *more)
        with open(pipe, "w"):  # waits until t2r has it open
            process.send_signal(number)
            time.sleep(0.1)
        return process.wait(60), process.communicate()[0]

    def test_a_run_that_has_not_begun_asks_to_be_started_again(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            output = self.folder / f"start-{number.name}"
            code, text = self.stop_at_the_start(
                "train", number, *self.train_arguments(output, "--steps", 2)[1:]
            )
            self.assertEqual(code, 75, text)
            self.assertIn(f"t2r: {number.name}: stopping before the first step", text)
            self.assertIn("stopped by a signal before the first step: nothing was trained", text)
            self.assertFalse(output.exists())

    def test_a_stop_is_not_lost_while_libraries_load(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            process = start(
                *self.train_arguments(self.folder / f"load-{number.name}", "--steps", 1000000)
            )
            status = pathlib.Path(f"/proc/{process.pid}/status")

            def is_held_or_heard():
                masks = re.findall(r"^Sig(?:Blk|Cgt):\s*(\w+)", status.read_text(), re.MULTILINE)
                return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)

            wait_for(is_held_or_heard)
            text = self.stop(process, number)
            self.assertEqual(process.returncode, 75, text)
            self.assertIn("stopping before the first step", text)

    def test_other_commands_end_as_ever(self):
        for command in ("evaluate", "convert", "generate"):
            code, text = self.stop_at_the_start(command, signal.SIGINT)
            self.assertEqual((code, text), (-signal.SIGINT, ""))


class Signals(RunCase):
    def begin(self, output, *more, **options):
        process = start(*self.train_arguments(output, "--steps", 1000000, *more), **options)
        wait_for(lambda: steps_of(output, "step"))
        return process

    def test_hangup_is_heard_as_often_as_it_comes_and_not_where_it_is_ignored(self):
        output = self.folder / "hangup"
        process = self.begin(output)
        process.send_signal(signal.SIGHUP)
        text = self.stop(process, signal.SIGHUP)
        self.assertEqual(process.returncode, 75, text)
        self.assertEqual(steps_of(output, "checkpoint"), [max(step_losses(output))])

        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
        try:
            process = self.begin(self.folder / "nohup")
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        self.assertIsNone(process.poll())
        text = self.stop(process, signal.SIGTERM)
        self.assertEqual(process.returncode, 75, text)
        self.assertIn(f"SIGTERM or SIGUSR1 to process {process.pid}, stops and saves", text)

    def is_saved_under_mpirun(self, number, attempt):
        output = self.folder / f"mpirun-{number.name}-{attempt}"
        process = self.begin(output, ranks=2)
        text = self.stop(process, number)
        kill_processes_naming(output)
        self.assertIn("SIGUSR1 to mpirun stops and saves", text)
        self.assertIn("stopping", text)
        manifest = output / "checkpoints/latest/manifest.json"
        return manifest.exists() and json.loads(manifest.read_text())["step"] == max(
            step_losses(output)
        )

    def test_what_mpirun_leaves_time_for_is_saved(self):
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
        ):  # a busy machine may need more than mpirun's second
            self.assertTrue(
                any(self.is_saved_under_mpirun(number, attempt) for attempt in range(3)), number
            )

    def test_a_signal_to_mpirun_and_its_ranks_at_once_is_one(self):
        output = (
            self.folder / "everybody"
        )  # as pkill and systemctl stop do it; mpirun passes its own on
        process = self.begin(output, ranks=2)
        for folder in pathlib.Path("/proc").iterdir():
            if folder.name.isdigit() and str(output).encode() in read_or_nothing(
                folder / "cmdline"
            ):
                os.kill(int(folder.name), signal.SIGUSR1)
        text = process.communicate(timeout=60)[0]
        self.assertEqual(process.returncode, 75, text)
        self.assertEqual(steps_of(output, "checkpoint"), [max(step_losses(output))])

    def test_a_stop_that_cannot_be_saved_is_not_called_saved(self):
        output = self.folder / "unsaved"
        process = start_limited(120_000, *self.train_arguments(output, "--steps", 1000000))
        wait_for(lambda: steps_of(output, "step"))
        text = self.stop(process, signal.SIGTERM)
        self.assertEqual(process.returncode, 73, text)
        self.assertIn("File too large", text)
        self.assertIn("the last checkpoint could not be written", text)

    def test_a_reader_that_leaves_does_not_end_a_run(self):
        output = self.folder / "pipe"
        process = subprocess.Popen(
            [BINARY, *map(str, self.train_arguments(output, "--steps", 60, "--log-every", 1))],
            stderr=subprocess.PIPE,
        )
        process.stderr.readline()
        process.stderr.close()
        self.assertEqual(process.wait(60), 0)
        self.assertEqual(steps_of(output, "end"), [60])


class StopSignals(Case):
    def wait_for_step(self, output, step, timeout=60):
        deadline = time.time() + timeout
        while time.time() < deadline:
            if (output / "metrics.jsonl").exists() and max(step_losses(output), default=0) >= step:
                return
            time.sleep(0.02)
        self.fail(f"step {step} was not reached")

    def test_stop_signals_save_and_exit_75(self):
        for number, ranks in ((signal.SIGUSR1, 2), (signal.SIGTERM, 1), (signal.SIGINT, 1)):
            output = self.folder / f"signal{int(number)}"
            process = start(*self.train_arguments(output, "--steps", 100000), ranks=ranks)
            self.wait_for_step(output, 3)
            process.send_signal(number)
            text, _ = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 75, text)
            stopped = json.loads((output / "checkpoints/latest/manifest.json").read_text())["step"]
            self.assertEqual(stopped, max(step_losses(output)))
            self.must(
                *self.train_arguments(output, "--steps", stopped + 2, "--resume"), ranks=ranks
            )

    def test_second_signal_leaves_at_once(self):
        output = self.folder / "twice"
        process = start(
            *self.train_arguments(
                output, "--steps", 100000, "--batch-size", 4000, "--micro-batch-size", 8
            )
        )
        deadline = time.time() + 60
        while not (output / "metrics.jsonl").exists() and time.time() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        self.assertEqual(process.returncode, -signal.SIGTERM)

    def test_kill_at_random_moments_leaves_a_loadable_checkpoint(self):
        rng = random.Random(5)
        output, reference = self.folder / "killed", self.folder / "reference"
        options = ["--schedule", "constant", "--checkpoint-every", 1, "--keep-checkpoints", 2]
        latest = output / "checkpoints/latest/manifest.json"

        def newest():
            return json.loads(latest.read_text())["step"] if latest.exists() else 0

        last = 0
        for kill in range(20):
            process = start(
                *self.train_arguments(output, *options, "--steps", 100000, "--resume"),
                ranks=1 + kill % 2,
            )
            # Every second kill falls anywhere, also into the start-up; the others into steps and
            # saves, once there is a new checkpoint.
            deadline = time.time() + 60
            while kill % 2 == 0 and newest() <= last and time.time() < deadline:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.4))
            os.killpg(process.pid, signal.SIGKILL)
            kill_processes_naming(output)
            process.communicate()
            last = max(last, newest())
        self.assertGreater(last, 3)
        result = self.must(*self.train_arguments(output, *options, "--steps", last + 2, "--resume"))
        self.assertNotIn("damaged", result.stderr)
        self.must(*self.train_arguments(reference, *options, "--steps", last + 2))
        a, b = step_losses(output), step_losses(reference)
        for step in range(1, last + 3):  # ranks were 1 and 2 in turn: equal to rounding
            self.assertLess(relative(a[step], b[step]), 1e-4, f"step {step}")
        leftovers = [p.name for p in (output / "checkpoints").iterdir() if ".tmp." in p.name]
        self.assertEqual(leftovers, [])


if __name__ == "__main__":
    unittest.main()
