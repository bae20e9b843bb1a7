"""What tests of a training run share: its records, waiting for it, limits on its files."""

import json
import os
import resource
import signal
import subprocess
import time

from support import BINARY, Case


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
