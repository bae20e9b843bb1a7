"""How commands end under mpirun and without: one message, its exit code, what MPI adds to it."""

import os
import pathlib
import re
import subprocess
import unittest

from support import BINARY, MPIRUN, Case, run


def lines_with(result, text):
    return [line for line in (result.stdout + result.stderr).splitlines() if text in line]


class Launcher(Case):
    def once(self, result, code, text):
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        self.assertEqual(len(lines_with(result, text)), 1, result.stdout + result.stderr)
        self.assertEqual(lines_with(result, "MPI_ABORT"), [], result.stderr)

    def test_a_command_without_mpirun_says_one_line(self):
        for arguments, code, text in (
            (["train"], 64, "--output is required"),
            (
                self.train_arguments(self.folder / "one", "--steps", 0),
                78,
                "exactly one of steps and tokens",
            ),
            (
                ["evaluate", "--model", self.folder / "none", "--data", self.folder / "valid"],
                78,
                "is not a folder",
            ),
            (
                self.train_arguments(
                    self.folder / "one", "--steps", 1, "--train-data", self.folder / "none"
                ),
                78,
                "none",
            ),
        ):
            result = run(*arguments)
            self.once(result, code, text)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)

    def test_the_dynamic_loader_may_start_it(self):
        loader = re.search(rb"/lib\S*?/ld-[^\0]+", pathlib.Path(BINARY).read_bytes())
        direct = run("--version")
        result = subprocess.run(
            [loader[0].decode(), BINARY, "--version"], capture_output=True, text=True, timeout=60
        )
        self.assertEqual((result.returncode, result.stdout), (0, direct.stdout), result.stderr)

    def test_ranks_that_fail_alike_say_it_once(self):
        for arguments, code, text in (
            (["train", "--outptu", "x"], 64, "did you mean --output?"),
            (["trian"], 64, "did you mean train?"),
            (
                self.train_arguments(self.folder / "two", "--steps", 1, "--eps", 0),
                78,
                "eps = 0, allowed",
            ),
            (
                ["evaluate", "--model", self.folder / "none", "--data", self.folder / "valid"],
                78,
                "is not a folder",
            ),
            (
                self.train_arguments(self.folder / "two", "--steps", 1, "--sequence-length", "1M"),
                78,
                "1000000",
            ),
        ):
            with self.subTest(text):
                self.once(run(*arguments, ranks=2), code, text)

    def test_a_rank_that_fails_alone_is_named_and_ends_the_job(self):
        # As two programs of one job: the second one has an option that is none.
        for second, text in (
            (["--outptu", "x"], "did you mean --output?"),
            ([], "different options"),
        ):
            first = [
                str(a)
                for a in self.train_arguments(
                    self.folder / "apart", "--steps", 100000, "--model.layers", 2
                )
            ]
            other = first + [str(a) for a in second] if second else [*first, "--seed", "7"]
            result = subprocess.run(
                [*MPIRUN, "-n", "1", BINARY, *first, ":", "-n", "1", BINARY, *other],
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual(result.returncode, 64 if second else 78, result.stderr)
            self.assertEqual(len(lines_with(result, text)), 1, result.stderr)
            if second:
                self.assertIn("rank 1: ", result.stderr)

    def test_commands_of_one_process_are_not_run_twice(self):
        output = self.folder / "converted"
        for command in (
            ["convert", "--model", self.folder, "--output", output],
            ["generate", "--model", self.folder, "--prompt", "a"],
            ["prepare", "vocab", "--inputs", self.folder / "train.txt", "--output", output],
            ["bench", "generate"],
            ["verify", "--model", self.folder, "--expected", "x"],
        ):
            self.once(run(*command, ranks=2), 78, "is one process, and OMPI_COMM_WORLD_SIZE=2")
        self.assertFalse(output.exists())

    def test_processes_of_another_launcher_are_refused(self):
        for rank in (0, 1):
            environment = {**os.environ, "PMI_RANK": str(rank), "PMI_SIZE": "2"}
            output = self.folder / "alone"
            result = subprocess.run(
                [BINARY, *map(str, self.train_arguments(output, "--steps", 1))],
                capture_output=True,
                text=True,
                env=environment,
            )
            self.assertEqual(result.returncode, 78, result.stderr)
            self.assertEqual("PMI_SIZE=2" in result.stderr, rank == 0, result.stderr)
            self.assertFalse(output.exists())

    def test_ranks_with_other_kernels_are_refused_at_start(self):
        train = list(map(str, self.train_arguments(self.folder / "kernels", "--steps", 1)))
        parts = [
            ["-n", "1", "-x", f"T2R_CPU_ISA={isa}", BINARY, *train] for isa in ("baseline", "avx2")
        ]
        result = subprocess.run(
            [*MPIRUN, *parts[0], ":", *parts[1]], capture_output=True, text=True, timeout=60
        )
        if "avx2" not in pathlib.Path("/proc/cpuinfo").read_text():
            self.assertEqual(result.returncode, 0, result.stderr)
            return
        self.once(result, 78, "the ranks' processors differ: rank 0 has kernels for baseline")
        self.assertFalse((self.folder / "kernels/checkpoints").exists())


if __name__ == "__main__":
    unittest.main()
