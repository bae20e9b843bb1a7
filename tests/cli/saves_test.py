"""Checkpoints that cannot be read, used or written: what readers and runs do then."""

import json
import os
import resource
import shutil
import signal
import struct
import unittest

from checkpoints_test import Run, manifest, names
from run_test import RunCase, records, start_limited, steps_of, wait_for
from support import run, start, step_losses, weights
import xxh3


class Readers(Run):
    def evaluate(self, output, name="latest"):
        return run(
            "evaluate",
            "--model",
            output / "checkpoints" / name,
            "--data",
            self.folder / "valid",
            "--context",
            32,
            "--max-tokens",
            64,
            "--json",
        )

    def test_a_newest_manifest_that_cannot_be_read_is_not_passed_over(self):
        output = self.copy("unreadable")
        file = output / "checkpoints/step-00000006/manifest.json"
        file.unlink()
        os.symlink("/proc/self/mem", file)  # opens, and gives EIO
        result = self.evaluate(output)
        self.fails(result, 65, "step-00000006/manifest.json", "Input/output error")
        self.assertEqual(result.stdout, "")

    def test_a_damaged_newest_manifest_is_named_once_before_an_older_one_is_taken(self):
        output = self.copy("damaged")
        (output / "checkpoints/step-00000006/manifest.json").write_text("")
        result = self.evaluate(output)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(
            result.stderr.count("checkpoint step-00000006 is damaged and not used: "),
            1,
            result.stderr,
        )
        loss, older = (
            json.loads(one.stdout)["loss_nats_per_token"]
            for one in (result, self.evaluate(output, "step-00000004"))
        )
        self.assertEqual(loss, older)


class NotFinite(Run):
    def test_weights_that_are_not_finite_are_left_for_the_older_checkpoint(self):
        output = self.copy("nan")
        folder = output / "checkpoints/step-00000006"
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-4:] = struct.pack("<f", float("nan"))
        file.write_bytes(data)
        text = json.dumps(manifest(output, "step-00000006"), indent=2) + "\n"
        record = manifest(output, "step-00000006")["files"][file.name]["xxh3_128"]
        (folder / "manifest.json").write_text(
            xxh3.sealed(text.replace(record, xxh3.xxh3_128(bytes(data)).hexdigest()))
        )
        result = self.resume(output)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("step-00000006 is damaged and not used", result.stderr)
        self.assertIn("not finite", result.stderr)
        self.assertIn("damaged-step-00000006", names(output))
        self.assertEqual(weights(output), weights(self.eight))


class Companions(RunCase):
    def test_a_tokenizer_that_goes_or_changes_while_a_run_trains_is_saved_as_it_was(self):
        tokenizer, before = self.folder / "goes.model", self.tokenizer.read_bytes()
        for number, change in enumerate(
            (tokenizer.unlink, lambda: tokenizer.write_bytes(b"another"))
        ):
            output = self.folder / f"companions-{number}"
            tokenizer.write_bytes(before)
            process = start(
                *self.train_arguments(output, "--steps", 1000000, "--tokenizer", tokenizer)
            )
            wait_for(lambda: steps_of(output, "step"))
            change()
            text = self.stop(process, signal.SIGTERM)
            self.assertEqual(process.returncode, 75, text)
            self.assertEqual((output / "checkpoints/latest" / tokenizer.name).read_bytes(), before)


class Diverging(RunCase):
    RUN_AWAY = [
        "--learning-rate",
        100,
        "--weight-decay",
        100,
        "--clip-norm",
        0,
        "--max-skipped-steps",
        5,
        "--steps",
        90,
    ]

    def arguments(self, output, *more):
        """Without validation data: nothing is the best."""
        arguments = self.train_arguments(
            output, "--schedule", "constant", "--keep-checkpoints", 2, *more
        )
        at = arguments.index("--valid-data")
        return arguments[:at] + arguments[at + 2 :]

    def test_skipped_steps_push_no_good_checkpoint_out(self):
        output = self.folder / "diverging"
        self.must(*self.arguments(output, "--steps", 3))
        for _ in range(3):  # as a script starts it again
            self.fails(
                run(*self.arguments(output, *self.RUN_AWAY, "--checkpoint-every", 3, "--resume")),
                74,
                "not finite in 6 steps in a row",
                "move out those that have diverged",
            )
        self.assertIn("step-00000003", names(output))
        for name in names(output):
            if name.startswith("step-") and name != "step-00000003":
                shutil.rmtree(output / "checkpoints" / name)
        self.must(*self.arguments(output, "--steps", 5, "--resume"))

    def test_what_was_trained_before_is_saved(self):
        output = self.folder / "diverged"
        self.fails(
            run(*self.arguments(output, *self.RUN_AWAY)), 74, "not finite in 6 steps in a row"
        )
        self.assertEqual(steps_of(output, "checkpoint"), [max(step_losses(output))])


class LastSave(RunCase):
    def test_a_disk_with_room_again_behind_the_last_evaluation_gets_the_checkpoint(self):
        output = self.folder / "again"
        process = start_limited(60_000, *self.long_evaluation(output), is_liftable=True)
        wait_for(lambda: "checkpoint not saved" in (output / "train.log").read_text())
        self.assertEqual(records(output, "evaluation"), [])
        hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard_limit, hard_limit))
        text, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, text)
        self.assertEqual(steps_of(output, "checkpoint"), [2])
        self.assertEqual(os.readlink(output / "checkpoints/best"), "step-00000002")

    def test_what_is_stopped_is_tried_once_more(self):
        output = self.folder / "stopped"
        process = start_limited(60_000, *self.train_arguments(output, "--steps", 1000000))
        wait_for(lambda: steps_of(output, "step"))
        text = self.stop(process, signal.SIGTERM)
        self.assertEqual(process.returncode, 73, text)
        self.assertEqual(text.count("checkpoint not saved"), 2, text)


class Repeated(RunCase):
    OPTIONS = ["--schedule", "constant"]

    def test_records_that_cannot_be_kept_beside_stay_where_they_are(self):
        output = self.folder / "full"
        self.must(*self.train_arguments(output, *self.OPTIONS, "--steps", 2))
        file, limit = output / "metrics.jsonl", 8_000_000
        line = next(
            line for line in file.read_text().splitlines() if '"event": "step"' in line
        ).replace('"step": 1,', '"step": 3,')
        with file.open("a") as appended:
            appended.write(line + "\n")
        with (output / "metrics.jsonl.repeated").open("w") as beside:
            beside.truncate(limit)
        result = run(
            *self.train_arguments(output, *self.OPTIONS, "--steps", 2, "--resume"),
            limit_bytes=limit,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(
            "metrics.jsonl.repeated: cannot write: File too large; steps after 2 stand there twice",
            result.stderr,
        )
        self.assertIn(line, file.read_text().splitlines())

    def test_the_evaluation_of_step_0_that_is_taken_again_stands_there_once(self):
        output = self.folder / "start"
        arguments = self.train_arguments(output, "--steps", 1000000, "--eval-at-start")
        process = start(*arguments)
        wait_for(lambda: steps_of(output, "step"))
        process.kill()
        process.communicate()
        self.assertEqual(steps_of(output, "evaluation"), [0])
        self.must(*self.train_arguments(output, "--steps", 2, "--eval-at-start", "--resume"))
        self.assertEqual(steps_of(output, "evaluation"), [0, 2])


if __name__ == "__main__":
    unittest.main()
