"""A training run as its watcher sees it: signals, evaluations, records, hosts that differ."""

import json
import math
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import time
import unittest

from support import (
    BINARY,
    MPIRUN,
    Case,
    kill_processes_naming,
    on_terminal,
    run,
    start,
    step_losses,
    weights,
)


def records(run_folder, event=None):
    """The lines of metrics.jsonl; each has to be JSON of its own."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if event is None or line["event"] == event]


def steps_of(run_folder, event):
    return [record["step"] for record in records(run_folder, event)]


def read_or_nothing(file):
    try:
        return file.read_bytes()
    except OSError:
        return b""


def wait_for(condition, timeout=90):
    deadline = time.time() + timeout
    while time.time() < deadline:
        try:
            if condition():
                return
        except (FileNotFoundError, json.JSONDecodeError):
            pass
        time.sleep(0.01)
    raise AssertionError("it did not come")


def start_limited(limit_bytes, *arguments, is_liftable=False):
    """Starts t2r with files that end at this size, and the signal for it as the system has it."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1] if is_liftable else limit_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))

    # MPI's own shared-memory files would meet the limit first.
    environment = {**os.environ, "PMIX_MCA_gds": "hash", "OMPI_MCA_btl": "self"}
    return subprocess.Popen(
        [BINARY, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=limit,
        env=environment,
    )


class RunCase(Case):
    def long_evaluation(self, output, *more):
        """A run whose evaluations take some seconds."""
        arguments = self.train_arguments(output, "--steps", 2, "--micro-batch-size", 1, *more)
        at = arguments.index("--valid-data")
        return [*arguments[: at + 1], *[self.folder / "train"] * 4, *arguments[at + 2 :]]

    def stop(self, process, number):
        process.send_signal(number)
        return process.communicate(timeout=60)[0]


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


class RanksThatDiffer(Case):
    """One rank in each of two folders: two hosts that have other files under the same name."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.hosts = [cls.folder / "a", cls.folder / "b"]
        cls.must(*cls.train_arguments(cls, cls.folder / "made", "--steps", 1))
        for host in cls.hosts:
            shutil.copytree(cls.folder / "train", host / "train")
            shutil.copytree(cls.folder / "valid", host / "valid")
            shutil.copytree(cls.folder / "made/checkpoints/latest", host / "model")

    def on_hosts(self, *arguments, settings=((), ())):
        command = [*MPIRUN]
        for host, more in zip(self.hosts, settings):
            command += ["-wdir", host, *more, "-n", 1, BINARY, *arguments, ":"]
        return subprocess.run(
            [*map(str, command[:-1])], capture_output=True, text=True, timeout=120
        )

    def train(self, output, *more, **options):
        return self.on_hosts(
            "train",
            "--output",
            output,
            "--train-data",
            "train",
            "--valid-data",
            "valid",
            "--model",
            "model",
            "--sequence-length",
            32,
            "--batch-size",
            8,
            "--steps",
            1,
            *more,
            **options,
        )

    def test_corpora(self):
        self.assertEqual(self.train(self.folder / "same").returncode, 0)
        for name in ("train", "valid"):
            there = self.hosts[1] / name
            there.rename(self.folder / "aside")
            self.must(
                "prepare",
                "lm",
                "--inputs",
                self.folder / f"{'valid' if name == 'train' else 'train'}.txt",
                "--tokenizer",
                self.tokenizer,
                "--output",
                there,
            )
            result = self.train(self.folder / f"other-{name}")
            self.fails(
                result,
                78,
                f"the content of the shards {name} differs between ranks: rank 0 on ",
                ", rank 1 on ",
                "give every host the same shards",
            )
            self.assertFalse((self.folder / f"other-{name}/checkpoints").exists())
            result = self.on_hosts("evaluate", "--model", "model", "--data", name, "--context", 32)
            self.fails(result, 78, f"the content of the shards {name} differs between ranks")
            shutil.rmtree(there)
            (self.folder / "aside").rename(there)

    def test_models(self):
        there = self.hosts[1] / "model"
        there.rename(self.folder / "aside")
        self.must(*self.train_arguments(self.folder / "made-otherwise", "--steps", 1, "--seed", 2))
        shutil.copytree(self.folder / "made-otherwise/checkpoints/latest", there)
        for result in (
            self.train(self.folder / "other-model"),
            self.on_hosts("evaluate", "--model", "model", "--data", "valid", "--context", 32),
        ):
            self.fails(
                result,
                78,
                "the model at model differs between ranks: rank 0 on ",
                ", rank 1 on ",
                "give every host the same model folder",
            )
        shutil.rmtree(there)
        (self.folder / "aside").rename(there)

    def test_instruction_sets(self):
        narrow = self.train(
            self.folder / "narrow",
            settings=(["-x", "T2R_CPU_ISA=baseline"], ["-x", "T2R_CPU_ISA=baseline"]),
        )
        self.assertEqual(narrow.returncode, 0, narrow.stderr)
        widest = self.train(self.folder / "widest")
        if "CPU kernels baseline" in widest.stderr:
            return  # this processor has one set only
        result = self.train(self.folder / "mixed", settings=((), ["-x", "T2R_CPU_ISA=baseline"]))
        self.fails(
            result,
            78,
            "the ranks' processors differ",
            "rank 1 for baseline",
            "give all ranks T2R_CPU_ISA=",
        )
        self.assertFalse((self.folder / "mixed/checkpoints").exists())


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
