"""Options of every command: help, dumps, values, names, and what contradicts another."""

import functools
import pathlib
import re
import tempfile
import unittest

from support import SOURCE, run

COMMANDS = [
    "prepare vocab",
    "prepare lm",
    "convert",
    "verify",
    "train",
    "evaluate",
    "generate",
    "bench generate",
    "bench train",
]


@functools.lru_cache
def help_of(command):
    """What `t2r COMMAND --help` prints."""
    return run(*command.split(), "--help").stdout


def help_keys(command):
    """The options that `t2r COMMAND --help` lists."""
    return set(re.findall(r"^  --([a-z0-9.-]+)", help_of(command), re.MULTILINE))


# Options of several commands that mean the same of different things: where what is made goes, whose
# randomness, which model or tokenizer.
OF_EACH_COMMAND = {
    "begin-of-text",
    "end-of-document",
    "json",
    "model",
    "output",
    "seed",
    "sequences-at-once",
    "threads",
    "tokenizer",
    "vocab-size",
}


def help_texts(command):
    """What `t2r COMMAND --help` says of each option, without defaults, limits and "for --text"."""
    entries = re.findall(
        r"^  --([a-z0-9.-]+)(?: \.\.\.| FILE|, -h)?\s+(.*(?:\n {6,}.*)*)",
        help_of(command),
        re.MULTILINE,
    )
    return {
        key: re.sub(r"^for --text: | \[(?:default|allowed):[^]]*\]", "", " ".join(text.split()))
        for key, text in entries
    }


class Commands(unittest.TestCase):
    """What needs no data."""

    def fails(self, result, code, *texts):
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        for text in texts:
            self.assertIn(text, result.stderr)

    def test_help_and_version(self):
        for arguments in (["--help"], ["help"]):
            self.assertIn("prepare lm", run(*arguments).stdout)
        for group, own, other in (
            ("prepare", "prepare vocab", "bench train"),
            ("bench", "bench attention", "prepare lm"),
        ):
            for arguments in ([group, "--help"], ["help", group]):
                with self.subTest(arguments):
                    result = run(*arguments)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    self.assertIn(own, result.stdout)
                    self.assertNotIn(other, result.stdout)
            self.fails(run(group), 64, f"t2r {group} --help lists them")
        self.assertIn("--learning-rate", run("help", "train").stdout)
        self.assertIn("--documents", run("help", "prepare", "lm").stdout)
        self.fails(run("help", "trian"), 64, "did you mean train?")
        version = run("--version")
        self.assertEqual(version.returncode, 0, version.stderr)
        for text in (
            r"^t2r \d+\.\d+\.\d+",
            r"^LibTorch \d",
            r"^CUDA: (yes|no)$",
            r"MPI",
            r"^HDF5 \d+\.\d+",
        ):
            self.assertRegex(version.stdout, re.compile(text, re.MULTILINE))

    def test_a_dump_goes_back_in_for_every_command(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "dump.toml"
            for command in COMMANDS:
                more = ["--model", "m"] if "train" in command else []  # beside a [model] table
                with self.subTest(command):
                    first = run(*command.split(), *more, "--dump-config")
                    self.assertEqual(first.returncode, 0, first.stderr)
                    path.write_text(first.stdout)
                    again = run(*command.split(), "--config", path, "--dump-config")
                    self.assertEqual(
                        (again.returncode, again.stdout), (0, first.stdout), again.stderr
                    )
                    self.assertRegex(first.stdout, r"(?m)^# [a-z]")

    def test_finetuning_is_dumped_as_it_is(self):
        dump = run(
            "train",
            "--model",
            "m",
            "--output",
            "x",
            "--tokens",
            "100M",
            "--checkpoint-minutes",
            "2h",
            "--dump-config",
        ).stdout
        for text in (
            '\nmodel = "m"\n',
            "\n# [model]\n",
            "\ntokens = 100000000\n",
            "\ncheckpoint-minutes = 120.0\n",
            "# optimizer steps\nsteps = 0\n",
        ):
            self.assertIn(text, dump)
        self.fails(
            run("train", "--model", "m", "--model.heads", 2, "--dump-config"),
            78,
            "--model and [model] exclude each other",
        )

    def test_values_that_are_none(self):
        # More of them in launch_option_values_test.cpp.
        for arguments, texts in (
            (["--steps", "32.9"], ["steps = 32.9, allowed: a whole number"]),
            (["--eps", "nan"], ["eps = nan, allowed: a finite number"]),
            (["--resume", "true"], ["--resume=true"]),
            (["models/x"], ['unknown argument "models/x"']),
        ):
            with self.subTest(arguments):
                self.fails(run("train", *arguments), 64, *texts)
        self.assertIn("\nsteps = 10\n", run("train", "--steps", "010", "--dump-config").stdout)
        base = ["train", "--output", "x", "--model", "m", "--train-data", "d"]
        for arguments, text in (
            (["--steps", 2, "--eps", -1], "eps = -1, allowed: 1e-30 to 1"),
            (
                ["--tokens", "1M", "--batch-size", 2**32, "--sequence-length", 2**32],
                "batch-size x sequence-length is more than",
            ),
            (
                ["--steps", 2, "--bucket-mib", "1e15"],
                "bucket-mib = 1000000000000000, allowed: 1 to",
            ),
            (
                ["--steps", 2, "--distillation", 0.5],
                "distillation = 0.5, allowed: 1 without a teacher",
            ),
            (["--steps", 2, "--beta1", 1], "beta1 = 1, allowed: 0 to 0.9999999"),
            (
                ["--steps", 2, "--clip-norm", "1e-45"],
                "clip-norm = 1e-45, allowed: 0 (no clipping), or 1e-30 to 1e+09",
            ),
        ):
            with self.subTest(arguments):
                self.fails(run(*base, *arguments), 78, text)
        self.fails(
            run("bench", "train", "--device", "cpu", "--threads", 100000),
            78,
            "threads = 100000, allowed: 0 to 1024",
        )
        self.fails(
            run("bench", "train", "--batch-size-per-rank", 2**40, "--sequence-length", 2**40),
            78,
            "batch-size-per-rank x sequence-length is more than",
        )
        self.fails(
            run("bench", "generate", "--lengths", "9e18"),
            78,
            "lengths = 9000000000000000000, allowed: 1 to",
        )
        self.fails(
            run("verify", "--model", "m", "--expected", "e", "--tolerance", "-1"),
            78,
            "tolerance = -1, allowed: 0 to",
        )
        for arguments in (["--model.hidden-size", 2**62], ["--model.layers", -1]):
            self.fails(
                run("bench", "train", *arguments),
                78,
                f"{arguments[0][2:]} = {arguments[1]}, allowed: ",
            )

    def test_a_name_that_means_something_else_here_is_refused_with_the_name_to_use(self):
        for command, name, now in (
            ("evaluate", "batch-size", "sequences-at-once"),
            ("generate", "batch-size", "sequences-at-once"),
            ("bench generate", "batch-size", "sequences-at-once"),
            ("bench generate", "steps", "timed-steps"),
            ("bench generate", "warmup-steps", "untimed-steps"),
            ("bench train", "batch-size", "batch-size-per-rank"),
            ("bench train", "steps", "timed-steps"),
            ("bench train", "warmup-steps", "untimed-steps"),
            ("prepare lm", "append-end-of-document", "end-of-document"),
        ):
            with self.subTest(command=command, name=name):
                for arguments in ([f"--{name}", 4], [f"--{name}=4"]):
                    self.fails(
                        run(*command.split(), *arguments),
                        64,
                        f"--{name} is --{now} here: ",
                    )
                self.assertNotIn(name, help_keys(command))
                with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                    file.write(f"\n{name} = 4\n")
                    file.flush()
                    self.fails(
                        run(*command.split(), "--config", file.name),
                        78,
                        f"{file.name}:2: {name} is {now} here: ",
                    )

    def test_an_option_of_several_commands_means_the_same_on_all(self):
        meanings = {}
        for command in COMMANDS:
            self.assertEqual(help_texts(command).keys(), help_keys(command), command)
            for key, text in help_texts(command).items():
                meanings.setdefault(key, {}).setdefault(text, []).append(command)
        for key, texts in meanings.items():
            if key not in OF_EACH_COMMAND:
                self.assertEqual(len(texts), 1, f"--{key}: {texts}")
        self.assertLessEqual(OF_EACH_COMMAND, meanings.keys())

    def test_names_are_shown_without_their_control_characters(self):
        result = run("evaluate", "--model", "no\x1b[2J\nmodel", "--data", "d", "--context", 8)
        self.assertEqual(result.returncode, 78, result.stderr)
        self.assertNotIn("\x1b[2J", result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)

    def test_options_that_messages_name_are_there(self):
        """Every --option that a source names is some command's, and in a command's file its own."""
        keys = {
            command: help_keys(command) | {"help", "config", "dump-config", "version"}
            for command in COMMANDS
        }
        anywhere = set().union(*keys.values()) | {"kind", "shapes"}
        own = {
            "command_convert.cpp": ["convert"],
            "command_evaluate.cpp": ["evaluate"],
            "command_generate.cpp": ["generate"],
            "command_train.cpp": ["train"],
            "command_verify.cpp": ["verify"],
            "trainer.cpp": ["train"],
            "train_config.cpp": ["train", "bench train"],
            "command_prepare.cpp": ["prepare lm", "prepare vocab"],
            "command_bench_generate.cpp": ["bench generate"],
            "command_bench_train.cpp": ["bench train"],
        }
        outside = {"mpi", "map-by", "signal"}  # of srun, mpirun and sbatch
        for source in sorted(
            path
            for folder in ("base", "data", "dist", "model", "launch")
            for path in (SOURCE / folder).rglob("*.cpp")
        ):
            if source.name in ("gpu_bench.cpp", "gpu_bench_kinds.cpp"):
                continue
            strings = re.findall(
                r'"((?:[^"\\\n]|\\.)*)"', re.sub(r"//[^\n]*", "", source.read_text())
            )
            named = {
                key.rstrip(".-")
                for text in strings
                for key in re.findall(r"(?<![\w-])--([a-z][a-z0-9.-]+)", text)
            } - outside
            allowed = (
                set().union(*(keys[command] for command in own[source.name]))
                if source.name in own
                else anywhere
            )
            for key in named:
                other = (
                    source.name in own
                    and key in anywhere
                    and any(
                        re.search(
                            r"t2r (convert|prepare|evaluate|generate|train)"
                            rf"[^\"]*--{re.escape(key)}",
                            text,
                        )
                        for text in strings
                    )
                )
                with self.subTest(source=source.name, option=key):
                    self.assertTrue(key in allowed or other, "is no option there")


if __name__ == "__main__":
    unittest.main()
