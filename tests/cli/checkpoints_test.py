"""Checkpoints as a user meets them: damage, what cannot be read, links, the best."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
import unittest

from checkpoint_runs import Run, contents, links, manifest, names
from support import Case, run, start, step_losses, weights


def flip(path, at=-100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


class Damage(Run):
    def test_no_checkpoint_that_verifies_is_an_error_and_nothing_is_touched(self):
        output = self.copy("none")
        for step in (2, 4, 6):
            flip(output / f"checkpoints/step-0000000{step}/model.safetensors")
        before = contents(output / "checkpoints")
        for ranks in (1, 2):
            result = self.resume(output, ranks=ranks)
            self.fails(
                result,
                65,
                "none of the 3 checkpoints in",
                "nothing was changed",
                "another --output",
            )
            for step in (2, 4, 6):
                self.assertIn(
                    f"step-0000000{step}/model.safetensors: content does not match", result.stderr
                )
            self.assertEqual(contents(output / "checkpoints"), before)

    def test_what_cannot_be_read_is_no_damage_and_nothing_is_touched(self):
        output = self.copy("unreadable")
        file = output / "checkpoints/step-00000006/manifest.json"
        kept = file.with_name("kept")
        file.rename(kept)
        os.symlink("/proc/self/mem", file)  # opens, and gives EIO
        before = contents(output / "checkpoints")
        self.fails(
            self.resume(output),
            65,
            "step-00000006 cannot be read, which is no damage",
            "Input/output error",
            "nothing was changed",
        )
        self.assertEqual(contents(output / "checkpoints"), before)
        file.unlink()
        kept.rename(file)
        self.assertEqual(self.resume(output).returncode, 0)
        self.assertEqual(weights(output), weights(self.eight))

    def test_damaged_ones_are_set_aside_and_take_no_part_in_retention(self):
        output = self.copy("aside")
        for step in (4, 6):
            flip(output / f"checkpoints/step-0000000{step}/model.safetensors")
        damaged = contents(output / "checkpoints/step-00000006")
        result = self.resume(output, 8)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("step-00000006 is damaged and not used", result.stderr)
        self.assertIn("the damaged step-00000006 is now damaged-step-00000006", result.stderr)
        self.assertEqual(
            names(output),
            [
                "best",
                "damaged-step-00000004",
                "damaged-step-00000006",
                "latest",
                "step-00000004",
                "step-00000006",
                "step-00000008",
            ],
        )
        self.assertEqual(contents(output / "checkpoints/damaged-step-00000006"), damaged)
        self.assertEqual(weights(output), weights(self.eight))
        self.assertEqual(step_losses(output), step_losses(self.eight))
        flip(output / "checkpoints/step-00000008/model.safetensors")
        flip(output / "checkpoints/step-00000006/model.safetensors")
        self.assertEqual(self.resume(output, 8).returncode, 0)
        self.assertIn("damaged-step-00000006-2", names(output))
        self.assertEqual(weights(output), weights(self.eight))

    def test_a_damaged_list_of_parts_is_left_for_the_older_one(self):
        for damage in ("parts", "step", "cursor", "world", "best", "hash", "empty", "zeros"):
            output = self.copy(f"manifest-{damage}")
            file = output / "checkpoints/step-00000006/manifest.json"
            text = file.read_text()
            changed = {
                "parts": text.replace("00000-of-00001", "00000-of-00002"),
                "step": text.replace('"step": 6', '"step": 7'),
                "cursor": text.replace('"sample_cursor": 48', '"sample_cursor": 49'),
                "world": text.replace('"world_size": 1', '"world_size": 0'),
                "best": text.replace('"loss": ', '"lost": '),
                "hash": text[: text.index("manifest_xxh3_128")],
                "empty": "",
                "zeros": "\0" * len(text),
            }[damage]
            self.assertNotEqual(changed, text)
            file.write_text(changed)
            result = self.resume(output)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("step-00000006 is damaged and not used", result.stderr)
            self.assertEqual(weights(output), weights(self.eight), damage)

    def test_parts_that_are_missing_are_left_for_the_older_one(self):
        output = self.copy("missing")
        (output / "checkpoints/step-00000006/optimizer-00000-of-00001.safetensors").unlink()
        result = self.resume(output)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("step-00000006 is damaged and not used", result.stderr)
        self.assertEqual(weights(output), weights(self.eight))

    def test_folders_of_the_users_stay_and_what_kills_leave_goes(self):
        output = self.copy("theirs")
        checkpoints = output / "checkpoints"
        theirs = [
            "step-00000006-keep",
            "step-00000002.tmp.mine",
            "step-7",
            "notes.tmp.1",
            "step-00000004.tmp.01",
            "latest.tmp.99999999",
        ]
        for name in theirs:
            shutil.copytree(checkpoints / "step-00000002", checkpoints / name)
        dead = 4194304 + 7  # above the largest process number
        left = [f"step-00000008.tmp.{dead}", f"step-00000002.tmp.{dead}"]
        for name in left:
            shutil.copytree(checkpoints / "step-00000002", checkpoints / name)
        os.symlink("step-00000002", checkpoints / f"best.tmp.{dead}")
        (checkpoints / f"step-00000006/manifest.json.tmp.{dead}").write_text("half")
        before = {name: contents(checkpoints / name) for name in theirs}
        self.must(*self.arguments(output, 12, "--resume"))
        self.assertEqual(
            names(output),
            sorted([*theirs, "best", "latest", "step-00000008", "step-00000010", "step-00000012"]),
        )
        self.assertEqual({name: contents(checkpoints / name) for name in theirs}, before)

    def test_what_a_dead_process_left_goes_though_nobody_has_waited_for_it(self):
        output = self.copy("zombie")
        zombie = subprocess.Popen(
            ["true"]
        )  # as in a container whose first process asks for no child
        while "Z" not in pathlib.Path(f"/proc/{zombie.pid}/stat").read_text().rsplit(")")[-1]:
            time.sleep(0.01)
        (output / f"checkpoints/step-00000007.tmp.{zombie.pid}").mkdir()
        result = self.resume(output)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual([name for name in names(output) if ".tmp." in name], [])
        zombie.wait()

    def test_a_manifest_of_an_earlier_version_is_taken_and_said(self):
        output = self.copy("earlier")
        for step in (2, 4, 6):
            file = output / f"checkpoints/step-0000000{step}/manifest.json"
            now = json.loads(file.read_text())
            identity = "".join(
                f"{key} = {value}\n"
                for key, value in now["identity"].items()
                if key != "model-weights"
            )
            file.write_text(
                json.dumps(
                    {
                        "version": 1,
                        **{
                            key: now[key]
                            for key in ("step", "num_updates", "sample_cursor", "num_tokens")
                        },
                        "has_best": True,
                        "best_loss": None if step == 6 else now["best"]["loss"],
                        "world_size": 1,
                        "identity": identity,
                        "files": now["files"],
                    },
                    indent=2,
                )
                + "\n"
            )
        finished = self.folder / "earlier-finished"
        shutil.copytree(output, finished, symlinks=True)
        result = self.resume(output)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("earlier version of t2r", result.stderr)
        self.assertEqual(weights(output), weights(self.eight))
        self.fails(self.resume(output, 10, "--seed", 9), 78, "seed = 1 there, seed = 9 here")
        # Evaluated again at its last step, the manifest is written anew, with all that a run is
        # known by.
        for steps in (6, 8):
            self.assertEqual(self.resume(finished, steps).returncode, 0)
        self.assertEqual(weights(finished), weights(self.eight))


class Disk(Case):
    def test_checkpoints_that_will_not_fit_are_said_at_the_start(self):
        output = self.folder / "large"
        process = start(
            *self.train_arguments(
                output, "--steps", 10**9, "--checkpoint-every", 1, "--keep-checkpoints", 10**9
            )
        )
        line = ""
        try:
            while "checkpoints will not fit" not in line and process.poll() is None:
                line = process.stdout.readline()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        self.assertRegex(
            line,
            r"one has 0\.000\d+ GB, and 1e\+09 more are to be there at once "
            r"\(keep-checkpoints = 1000000000.* GB free",
        )
        fits = self.must(
            *self.train_arguments(self.folder / "small", "--steps", 2, "--keep-checkpoints", 10**9)
        )
        self.assertNotIn("will not fit", fits.stderr)


class Best(Run):
    def test_the_last_evaluation_counts_when_its_step_is_saved_already(self):
        # Saved at 3 and 6, evaluated at 4 and 6: the better one is known only behind the save.
        output = self.folder / "behind"
        result = self.must(
            *self.train_arguments(
                output,
                "--steps",
                6,
                "--eval-every",
                4,
                "--checkpoint-every",
                3,
                "--learning-rate",
                1e-2,
            )
        )
        self.assertRegex(result.stderr, r"step 6: validation loss .*the best so far")
        self.assertEqual(links(output), {"best": "step-00000006", "latest": "step-00000006"})
        self.assertEqual(manifest(output)["best"]["step"], 6)
        never = self.folder / "never"
        self.must(*self.train_arguments(never, "--steps", 6, "--checkpoint-every", 3))
        self.assertEqual(links(never), {"best": "step-00000006", "latest": "step-00000006"})

    def test_without_validation_data_the_last_is_the_best(self):
        output = self.folder / "blind"
        arguments = self.train_arguments(output, "--steps", 4, "--checkpoint-every", 2)
        at = arguments.index("--valid-data")
        self.must(*arguments[:at], *arguments[at + 2 :])
        self.assertEqual(links(output), {"best": "step-00000004", "latest": "step-00000004"})

    def test_what_is_not_finite_is_never_the_best(self):
        output = self.folder / "infinite"
        options = [
            "--learning-rate",
            100,
            "--weight-decay",
            100,
            "--clip-norm",
            0,
            "--max-skipped-steps",
            1000,
            "--schedule",
            "constant",
        ]
        result = run(
            *self.train_arguments(
                output, *options, "--steps", 10, "--eval-every", 10, "--checkpoint-every", 2
            )
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, "validation loss (-?nan|inf)")
        self.assertNotIn("best so far", result.stderr)
        self.assertIsNone(manifest(output)["best"])
        self.assertNotIn("best", names(output))
        self.must(
            *self.train_arguments(
                output, *options, "--steps", 12, "--checkpoint-every", 2, "--resume"
            )
        )
        self.assertEqual(manifest(output)["step"], 12)

    def test_links_are_mended_when_the_run_goes_on(self):
        for damage in ("stale", "gone", "dangling"):
            output = self.copy(f"links-{damage}")
            right = links(output)
            self.assertEqual(right["latest"], "step-00000006")
            for name in ("best", "latest"):
                (output / "checkpoints" / name).unlink()
                if damage != "gone":
                    os.symlink(
                        "step-00000002" if damage == "stale" else "step-00000099",
                        output / "checkpoints" / name,
                    )
            self.must(*self.arguments(output, 6, "--resume"))
            self.assertEqual(links(output), right, damage)

    def test_a_link_that_cannot_be_made_is_a_warning(self):
        output = self.copy("no-links")
        for name in ("best", "latest"):
            (output / "checkpoints" / name).unlink()
            (output / "checkpoints" / name).mkdir()  # nothing can be renamed over a folder
        result = self.resume(output)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("checkpoints/latest: cannot link to step-00000008", result.stderr)
        self.assertEqual(weights(output, "step-00000008"), weights(self.eight))
        self.assertEqual([name for name in names(output) if ".tmp." in name], [])


if __name__ == "__main__":
    unittest.main()
