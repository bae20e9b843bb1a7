"""A run with checkpoints, for tests of what becomes of them."""

import json
import os
import pathlib
import shutil

from support import Case, run


def names(output):
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def links(output):
    return {name: os.readlink(output / "checkpoints" / name) for name in ("best", "latest")}


def manifest(output, name="latest"):
    return json.loads((output / "checkpoints" / name / "manifest.json").read_text())


def contents(folder):
    """Every file and link below a folder: what must not change when nothing is to be touched."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


class Run(Case):
    """One run of six steps with checkpoints at 2, 4 and 6, and the same run of eight steps."""

    OPTIONS = [
        "--schedule",
        "constant",
        "--checkpoint-every",
        2,
        "--keep-checkpoints",
        3,
        "--eval-every",
        2,
    ]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.six, cls.eight = cls.folder / "six", cls.folder / "eight"
        cls.must(*cls.arguments(cls.six, 6))
        cls.must(*cls.arguments(cls.eight, 8))

    @classmethod
    def arguments(cls, output, steps, *more):
        return [
            str(x) for x in cls.train_arguments(cls, output, *cls.OPTIONS, "--steps", steps, *more)
        ]

    def copy(self, name):
        output = self.folder / name
        shutil.copytree(self.six, output, symlinks=True)
        return output

    def resume(self, output, steps=8, *more, **options):
        return run(*self.arguments(output, steps, "--resume", *more), **options)
