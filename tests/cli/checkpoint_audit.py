"""Audit of what a user's work can meet: changed bytes in manifests and models, kills at any moment,
kills in front of each call of a save that changes the disk. Prints one line of figures for each
part and ends with 1 if anything went unseen.

    python3 tests/cli/checkpoint_audit.py                      # the whole, some ten minutes
    python3 tests/cli/checkpoint_audit.py --flips 20 --model-flips 10 --kills 3 --kill-points 12

T2R_BINARY names the binary, T2R_SOURCE_DIR the project, T2R_KILL_LIBRARY the library that
kill_before_call.c makes (without it that part is left out, and said). ctest sets all three and runs
a small part.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

from support import BINARY, Case, run, start, weights

OPTIONS = ["--schedule", "constant", "--keep-checkpoints", 2, "--eval-tokens", 64]


def flipped(text, position, rng):
    """Another byte: for a digit another digit (it stays a valid number), else a bit or a byte."""
    byte = text[position]
    if chr(byte).isdigit() and rng.random() < 0.6:
        return ord(rng.choice([digit for digit in "0123456789" if digit != chr(byte)]))
    return (
        byte ^ (1 << rng.randrange(8))
        if rng.random() < 0.6
        else rng.choice([other for other in range(256) if other != byte])
    )


class Audit(Case):
    def train(self, output, steps, *more):
        return [str(x) for x in self.train_arguments(output, *OPTIONS, "--steps", steps, *more)]

    def copy(self, source, name):
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)
        return target

    def base(self):
        """A run of six steps with checkpoints at 4 and 6, and the weights that seven give."""
        if not hasattr(self, "_base"):
            self._base = self.folder / "base"
            self.must(*self.train(self._base, 6, "--checkpoint-every", 2))
            whole = self.folder / "whole"
            self.must(*self.train(whole, 7, "--checkpoint-every", 2))
            self._seven = weights(whole)
        return self._base

    def manifest_flips(self, count):
        """Flips spread over the lines of the newest manifest: each a field, or a file's record."""
        rng = random.Random(216)
        base = self.base()
        text = (base / "checkpoints/step-00000006/manifest.json").read_bytes()
        starts = [0] + [i + 1 for i, byte in enumerate(text[:-1]) if byte == 10]
        figures = {"detected": 0, "harmless": 0, "undetected": 0}
        for number in range(count):
            line = number % len(starts)
            end = starts[line + 1] if line + 1 < len(starts) else len(text)
            position = rng.randrange(starts[line], end)
            changed = bytearray(text)
            changed[position] = flipped(text, position, rng)
            output = self.copy(base, "flipped")
            (output / "checkpoints/step-00000006/manifest.json").write_bytes(changed)
            result = run(*self.train(output, 7, "--resume"))
            is_right = result.returncode == 0 and weights(output) == self._seven
            is_named = (
                "step-00000006 is damaged and not used" in result.stderr
                and "resumed from" in result.stderr
            )
            outcome = (
                "detected" if is_right and is_named else "harmless" if is_right else "undetected"
            )
            figures[outcome] += 1
            if outcome == "undetected":
                print(
                    f"byte {position}: {text[position]} -> {changed[position]}, "
                    f"exit {result.returncode}:\n{result.stderr}"
                )
        print(
            f"manifest: {count} flips in {len(starts)} lines: {figures['detected']} detected and "
            f"the older one taken, {figures['harmless']} harmless, "
            f"undetected: {figures['undetected']}"
        )
        return figures["undetected"] == 0

    def model_flips(self, count):
        """Flips over the files of a converted model's folder, each file in turn."""
        rng = random.Random(100)
        softmax, model = self.folder / "softmax", self.folder / "converted"
        self.must(*self.train(softmax, 2, "--model.attention", "softmax"))
        self.must(
            "convert",
            "--model",
            softmax / "checkpoints/latest",
            "--output",
            model,
            "--feature-size",
            8,
        )
        files = sorted(model.iterdir())
        commands = [
            ["evaluate", "--data", self.folder / "valid", "--context", 32, "--max-tokens", 64],
            ["generate", "--prompt", "the river", "--max-new-tokens", 3],
        ]
        undetected = 0
        for number in range(count):
            file = files[number % len(files)]
            folder = self.copy(model, "flipped-model")
            data = bytearray(file.read_bytes())
            position = rng.randrange(len(data))
            data[position] = flipped(data, position, rng)
            (folder / file.name).write_bytes(data)
            name, *rest = commands[number // len(files) % 2]
            result = run(name, "--model", folder, *rest)
            if result.returncode != 65 or file.name not in result.stderr:
                undetected += 1
                print(
                    f"{file.name}, byte {position}, {name}: exit {result.returncode}\n"
                    f"{result.stdout}{result.stderr}"
                )
        print(
            f"model folder: {count} flips in {len(files)} files: {count - undetected} refused with "
            f"the file's name, undetected: {undetected}"
        )
        return undetected == 0

    def kills(self, count):
        """kill -9 at random moments of a run that saves at every step, each time resumed."""
        rng = random.Random(30)
        output, reference = self.folder / "killed", self.folder / "reference"
        every = ["--checkpoint-every", 1]

        def newest():
            return max(
                (int(path.name[5:]) for path in (output / "checkpoints").glob("step-????????")),
                default=0,
            )

        last = 0
        for number in range(count):
            process = start(*self.train(output, 100000, *every, "--resume"))
            deadline = time.time() + 60
            # Every third falls into the start-up and loading; the others into steps, saves and
            # evaluations.
            while (
                number % 3
                and newest() <= last
                and process.poll() is None
                and time.time() < deadline
            ):
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.3))
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            last = newest()
        final = last + 2
        result = run(*self.train(output, final, *every, "--resume"))
        self.must(*self.train(reference, final, *every))
        is_right = (
            result.returncode == 0
            and weights(output) == weights(reference)
            and "damaged" not in result.stderr
        )
        if not is_right:
            print(f"exit {result.returncode}\n{result.stderr}")
        print(
            f"kills: {count} at random moments of {final} steps: final weights "
            f"{'bitwise equal' if is_right else 'NOT equal'}"
        )
        return is_right

    def kill_points(self, count):
        """SIGKILL in front of each call that changes the disk, from loading to the end of a run
        that saves, evaluates, notes the evaluation in its checkpoint and removes an old one.
        count 0: every call."""
        library = os.environ.get("T2R_KILL_LIBRARY")
        if not library:
            print("kill points: left out, T2R_KILL_LIBRARY is not set")
            return True
        base, log = self.base(), self.folder / "calls"

        def resume(output, **variables):
            environment = {
                **os.environ,
                "LD_PRELOAD": library,
                "T2R_KILL_FOLDER": str(output / "checkpoints"),
                **variables,
            }
            return subprocess.run(
                [BINARY, *self.train(output, 7, "--resume", "--checkpoint-every", 1)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )

        def is_whole(output, result):
            return (
                result.returncode == 0
                and weights(output) == self._seven
                and "damaged" not in result.stderr
            )

        output = self.copy(base, "counted")
        if not is_whole(output, resume(output, T2R_KILL_LOG=str(log))):
            print("kill points: the run itself fails with the library")
            return False
        calls = [line.split() for line in log.read_text().splitlines()]
        points = range(1, len(calls) + 1)
        if count:
            points = sorted(random.Random(12).sample(points, min(count, len(calls))))
        wrong = 0
        for point in points:
            output = self.copy(base, "at-a-point")
            killed = resume(output, T2R_KILL_AT=str(point))
            result = run(*self.train(output, 7, "--resume"))
            left = [
                path.name for path in (output / "checkpoints").rglob("*") if ".tmp." in path.name
            ]
            links = {
                name: os.readlink(output / "checkpoints" / name) for name in ("best", "latest")
            }
            best = json.loads((output / "checkpoints/latest/manifest.json").read_text())["best"][
                "step"
            ]
            is_right = (
                killed.returncode == -signal.SIGKILL
                and is_whole(output, result)
                and not left
                and links == {"latest": "step-00000007", "best": f"step-{best:08}"}
            )
            if not is_right:
                wrong += 1
                print(
                    f"call {point}: {calls[point - 1]}: killed {killed.returncode}, "
                    f"resumed {result.returncode}, left {left}, links {links}\n"
                    f"{result.stderr}"
                )
        kinds = sorted({call[1] for call in calls})
        print(
            f"kill points: in front of {len(points)} of {len(calls)} calls ({', '.join(kinds)}): "
            f"{len(points) - wrong} load, continue bitwise and leave nothing behind, wrong: {wrong}"
        )
        return wrong == 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--flips", type=int, default=216, help="in the fields of a checkpoint's manifest"
    )
    parser.add_argument(
        "--model-flips", type=int, default=100, help="in the files of a model's folder"
    )
    parser.add_argument("--kills", type=int, default=30, help="at random moments")
    parser.add_argument(
        "--kill-points", type=int, default=0, help="of a save, chosen at random; 0: all"
    )
    arguments = parser.parse_args()
    Audit.setUpClass()
    try:
        audit = Audit()
        results = [
            audit.manifest_flips(arguments.flips),
            audit.model_flips(arguments.model_flips),
            audit.kills(arguments.kills),
            audit.kill_points(arguments.kill_points),
        ]
    finally:
        Audit.tearDownClass()
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
