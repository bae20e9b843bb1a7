"""Runs the t2r binary as a user does: processes, exit codes, messages, files.

T2R_BINARY names the binary, T2R_SOURCE_DIR the project; both are set by ctest.
"""

import json
import os
import pathlib
import pty
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import unittest

# Without this the commands of a machine with a GPU would use it.
if os.environ.get("T2R_TEST_ON_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

BINARY = os.environ["T2R_BINARY"]
SOURCE = pathlib.Path(os.environ["T2R_SOURCE_DIR"])
SHARED = pathlib.Path(os.environ.get("T2R_SHARED", SOURCE / "../shared"))
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none"]


def launch(ranks):
    """The command in front of `t2r` for this many ranks."""
    return [*MPIRUN, "-n", str(ranks)] if ranks > 1 else []


def run(*arguments, ranks=1, limit_bytes=None, timeout=300):
    """Runs t2r to its end; limit_bytes makes every larger file fail, as a full disk does."""
    # MPI's own shared-memory files would meet the limit first: without them it starts.
    environment = (
        {**os.environ, "PMIX_MCA_gds": "hash", "OMPI_MCA_btl": "self"}
        if limit_bytes is not None
        else None
    )

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    # A text may end within a character.
    return subprocess.run(
        [*launch(ranks), BINARY, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=timeout,
        preexec_fn=limit if limit_bytes is not None else None,
        env=environment,
    )


def start(*arguments, ranks=1):
    """Starts t2r in a process group of its own."""
    return subprocess.Popen(
        [*launch(ranks), BINARY, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def on_terminal(*arguments):
    """What t2r writes to stderr when that is a terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [BINARY, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=its
    )
    os.close(its)
    written = b""
    try:
        while block := os.read(ours, 4096):
            written += block
    except OSError:  # EIO: the other end is closed
        pass
    os.close(ours)
    return process.wait(60), written.decode()


def kill_processes_naming(path):
    """SIGKILL to each process whose command line has `path`: ranks that outlive a killed mpirun."""
    for process in pathlib.Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(path).encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended by itself


def make_text(num_documents, seed):
    """English-like text in which the next word depends on the last: something to learn."""
    rng = random.Random(seed)
    subjects = [
        "the cat",
        "a small dog",
        "my neighbour",
        "the old ship",
        "every student",
        "the river",
    ]
    verbs = ["watches", "follows", "remembers", "crosses", "paints", "hears"]
    objects = ["the bridge", "a song", "the green house", "some rain", "the long road", "a letter"]
    documents = []
    for _ in range(num_documents):
        sentences = []
        for _ in range(rng.randint(3, 9)):
            index = rng.randrange(6)
            name = (
                rng.choice("blmnrst")
                + rng.choice("aeiou")
                + rng.choice("dglnrv")
                + rng.choice("aeio")
                + rng.choice(["", "n", "s", "rt"])
            )
            sentences.append(
                f"{subjects[index]} {verbs[(index + rng.randrange(2)) % 6]} "
                f"{rng.choice(objects)} of {name}."
            )
        documents.append(" ".join(sentences).capitalize())
    return "\n\n".join(documents) + "\n"


def relative(a, b):
    """How far a number is from another, as a part of that."""
    return abs(float(a) - float(b)) / abs(float(b))


class Case(unittest.TestCase):
    """A test class with one temporary folder and one tiny prepared corpus."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="t2r-cli-"))
        for name, documents, seed in (("train", 400, 1), ("valid", 40, 2)):
            (cls.folder / f"{name}.txt").write_text(make_text(documents, seed))
        cls.tokenizer = cls.folder / "tokenizer.model"
        cls.must(
            "prepare",
            "vocab",
            "--inputs",
            cls.folder / "train.txt",
            "--output",
            cls.tokenizer,
            "--vocab-size",
            320,
        )
        for name in ("train", "valid"):
            cls.must(
                "prepare",
                "lm",
                "--inputs",
                cls.folder / f"{name}.txt",
                "--tokenizer",
                cls.tokenizer,
                "--output",
                cls.folder / name,
                "--documents",
                "blank-line",
            )

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder, ignore_errors=True)

    @classmethod
    def must(cls, *arguments, **options):
        result = run(*arguments, **options)
        if result.returncode != 0:
            raise AssertionError(
                f"t2r {' '.join(map(str, arguments))} ended with {result.returncode}:\n"
                f"{result.stderr}"
            )
        return result

    @classmethod
    def small_model(cls):
        """A softmax model of 2 x 32 after two steps, in the run folder `run`."""
        cls.must(
            "train",
            "--output",
            cls.folder / "run",
            "--train-data",
            cls.folder / "train",
            "--tokenizer",
            cls.tokenizer,
            "--model.layers",
            2,
            "--model.hidden-size",
            32,
            "--model.heads",
            2,
            "--sequence-length",
            32,
            "--batch-size",
            8,
            "--steps",
            2,
        )
        return cls.folder / "run/checkpoints/latest"

    def other_tokenizer(self):
        """A tokenizer of its own, of 300 pieces; what it makes of valid.txt: `other`."""
        other = self.folder / "other.model"
        if not other.exists():
            self.must(
                "prepare",
                "vocab",
                "--inputs",
                self.folder / "valid.txt",
                "--output",
                other,
                "--vocab-size",
                300,
            )
            self.must(
                "prepare",
                "lm",
                "--inputs",
                self.folder / "valid.txt",
                "--tokenizer",
                other,
                "--output",
                self.folder / "other",
            )
        return other

    def fails(self, result, code, *texts):
        """Asserts an exit code and that the message says each of `texts`."""
        output = result.stdout + result.stderr
        self.assertEqual(result.returncode, code, output)
        for text in texts:
            self.assertIn(text, output)

    def finetune(self, output, model, *more):
        """The arguments that train a given model on the corpus."""
        return [
            "train",
            "--output",
            output,
            "--model",
            model,
            "--train-data",
            self.folder / "train",
            "--valid-data",
            self.folder / "valid",
            "--sequence-length",
            32,
            "--batch-size",
            8,
            "--learning-rate",
            3e-3,
            *more,
        ]

    def train_arguments(self, output, *more):
        return [
            "train",
            "--output",
            output,
            "--train-data",
            self.folder / "train",
            "--valid-data",
            self.folder / "valid",
            "--tokenizer",
            self.tokenizer,
            "--model.layers",
            2,
            "--model.hidden-size",
            32,
            "--model.heads",
            2,
            "--model.attention",
            "t2r",
            "--model.feature-size",
            8,
            "--sequence-length",
            32,
            "--batch-size",
            8,
            "--learning-rate",
            3e-3,
            "--log-every",
            5,
            *more,
        ]


def step_losses(run_folder):
    """Loss by step, the newest line of each step, as text: %.9g tells any two floats apart."""
    losses = {}
    for line in (pathlib.Path(run_folder) / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line, parse_float=str)
        if entry["event"] == "step":
            losses[entry["step"]] = entry["loss"]
    return losses


def weights(run_folder, name="latest"):
    return (pathlib.Path(run_folder) / "checkpoints" / name / "model.safetensors").read_bytes()
