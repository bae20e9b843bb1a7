"""Ranks whose hosts differ in their files or processors are told so at the start."""

import shutil
import subprocess
import unittest

from support import BINARY, MPIRUN, Case


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


if __name__ == "__main__":
    unittest.main()
