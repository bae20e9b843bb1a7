#!/usr/bin/env python3
"""Golden runs: what two builds of t2r compute from the same inputs, compared bit for bit.

    # before a change that is to alter no number
    tests/golden_runs.py record golden.json --binary OLD/t2r
    # after it: 0, or the cases that differ and 1
    tests/golden_runs.py compare golden.json --binary NEW/t2r

Each case is a run of 20 steps of a small model on text that is made here. Recorded are the losses,
gradient norms, the hash of every file of the last checkpoint, its perplexity and the tokens that it
generates; of the fixtures in T2R_SHARED, where that is a folder, what `t2r verify` prints. Records
compare on the machine (processor, number of threads) and with the libraries that made them.
--device cuda runs in deterministic mode; --ranks 1,2 leaves three ranks out, as two GPUs must.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(__file__).resolve().parent.parent
STEPS = 20


class Runner:
    """Runs one binary in one folder; all paths it is given are relative: none enters a record."""

    def __init__(self, binary, folder, device):
        self.binary, self.folder, self.device = (
            pathlib.Path(binary).resolve(),
            pathlib.Path(folder),
            device,
        )
        self.environment = dict(os.environ, OMP_NUM_THREADS="1")
        if device == "cpu":
            self.environment["CUDA_VISIBLE_DEVICES"] = ""

    def __call__(self, *arguments, ranks=1):
        launcher = (
            ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
            if ranks > 1
            else []
        )
        result = subprocess.run(
            [*launcher, self.binary, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            sys.exit(
                f"{' '.join(map(str, arguments))}: ended with {result.returncode}\n{result.stderr}"
            )
        return result.stdout

    def compute(self, *arguments, ranks=1):
        """A command that computes on the device, with one thread a rank."""
        return self(*arguments, "--threads", 1, "--device", self.device, ranks=ranks)


def prepare(run):
    os.environ.setdefault("T2R_BINARY", str(run.binary))
    os.environ.setdefault("T2R_SOURCE_DIR", str(SOURCE))
    sys.path.insert(0, str(SOURCE / "tests/cli"))
    from support import make_text

    for name, num_documents, seed in (("train", 400, 1), ("valid", 30, 2)):
        (run.folder / f"{name}.txt").write_text(make_text(num_documents, seed))
    run(
        "prepare",
        "vocab",
        "--inputs",
        "train.txt",
        "--output",
        "tokenizer.model",
        "--vocab-size",
        320,
    )
    for name in ("train", "valid"):
        run(
            "prepare",
            "lm",
            "--inputs",
            f"{name}.txt",
            "--tokenizer",
            "tokenizer.model",
            "--output",
            name,
            "--documents",
            "blank-line",
        )


def hashes(folder):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }


def last_checkpoint(run_folder):
    return max((run_folder / "checkpoints").glob("step-*"))


def record_of(run, name, ranks):
    """What a run and its last checkpoint are."""
    steps = []
    for line in (run.folder / name / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line, parse_float=str)
        if entry["event"] == "step":
            steps.append([entry["loss"], entry["grad_norm"]])
    checkpoint = last_checkpoint(run.folder / name)
    record = {"steps": steps, "files": hashes(checkpoint)}
    if ranks == 1:
        score = json.loads(
            run.compute(
                "evaluate",
                "--model",
                checkpoint,
                "--data",
                "valid",
                "--context",
                64,
                "--scored",
                32,
                "--max-tokens",
                1000,
                "--json",
            )
        )
        record["evaluate"] = score["loss_nats_per_token"]
        for seed, options in (
            (1, ()),
            (2, ("--temperature", 0.9, "--top-k", 40, "--top-p", 0.9, "--seed", 7)),
        ):
            record[f"generate {seed}"] = run.compute(
                "generate",
                "--model",
                checkpoint,
                "--prompt",
                "The old ship",
                "--max-new-tokens",
                24,
                "--ignore-end",
                *options,
            )
    return record


def cases(device, rank_counts):
    """(name, family, attention of --model or None to pretrain, ranks, more options)."""
    for family in ("gpt2", "llama"):
        for attention in ("softmax", "t2r", "elu", "hedgehog", "t2r75"):
            for ranks in rank_counts:
                yield f"{family} {attention} {ranks}", family, attention, ranks, ()
        more = {
            "dropout": ("t2r", ("--dropout", 0.1)),
            "dropout softmax": ("softmax", ("--dropout", 0.1)),
            "transfer": ("t2r", ("--transfer-steps", 8)),
            "transfer hedgehog": ("hedgehog", ("--transfer-steps", 8)),
            "teacher": ("t2r", ("--teacher", f"start/{family}-softmax", "--distillation", 0.7)),
            "micro-batches": ("t2r75", ("--micro-batch-size", 1)),
            "recompute": ("t2r75", ("--recompute", "all")),
            "scratch": (None, ("--model.attention", "t2r", "--model.feature-size", 16)),
        }
        for name, (attention, options) in more.items():
            for ranks in rank_counts[:2]:
                yield f"{family} {name} {ranks}", family, attention, ranks, options
        if device == "cuda":
            for attention in ("softmax", "t2r", "hedgehog"):
                yield f"{family} {attention} float32", family, attention, 1, (
                    "--precision",
                    "float32",
                )


def shape_of(family, device):
    """[model] options: heads of 16 columns, or 64 for a GPU's kernels; Llama shares key heads."""
    width = 256 if device == "cuda" else 64
    return (
        "--model.family",
        family,
        "--model.layers",
        4,
        "--model.hidden-size",
        width,
        "--model.heads",
        4,
        *(("--model.kv-heads", 2) if family == "llama" else ()),
    )


def train_options(device):
    options = (
        "--train-data",
        "train",
        "--sequence-length",
        72,
        "--batch-size",
        6,
        "--steps",
        STEPS,
        "--learning-rate",
        2e-3,
        "--warmup-steps",
        4,
        "--log-every",
        1,
    )
    return (*options, "--deterministic") if device == "cuda" else options


def make_starts(run):
    """Folders start/FAMILY-ATTENTION: a softmax model of a few steps, and what it converts to."""
    (run.folder / "start").mkdir()
    for family in ("gpt2", "llama"):
        run.compute(
            "train",
            "--output",
            f"pre-{family}",
            "--tokenizer",
            "tokenizer.model",
            *shape_of(family, run.device),
            *train_options(run.device),
        )
        last_checkpoint(run.folder / f"pre-{family}").rename(run.folder / f"start/{family}-softmax")
        for attention, options in (
            ("t2r", ("--feature-map", "t2r", "--feature-size", 32)),
            ("elu", ("--feature-map", "elu")),
            ("hedgehog", ("--feature-map", "hedgehog")),
            ("t2r75", ("--feature-map", "t2r", "--feature-size", 32, "--keep-softmax-every", 4)),
        ):
            run(
                "convert",
                "--model",
                f"start/{family}-softmax",
                "--output",
                f"start/{family}-{attention}",
                *options,
            )


def run_all(binary, device, rank_counts, only):
    records = {}
    with tempfile.TemporaryDirectory(prefix="t2r-golden-") as folder:
        run = Runner(binary, folder, device)
        prepare(run)
        make_starts(run)
        for start in sorted((run.folder / "start").iterdir()):
            records[f"start {start.name}"] = {"files": hashes(start)}
        for name, family, attention, ranks, options in cases(device, rank_counts):
            if only not in name:
                continue
            output = "run-" + name.replace(" ", "-")
            model = (
                ("--model", f"start/{family}-{attention}")
                if attention
                else ("--tokenizer", "tokenizer.model", *shape_of(family, device))
            )
            run.compute(
                "train", "--output", output, *model, *train_options(device), *options, ranks=ranks
            )
            records[name] = record_of(run, output, ranks)
        shared = pathlib.Path(os.environ.get("T2R_SHARED", SOURCE / "../shared")) / "fixtures"
        for expected in sorted(shared.glob("*/expected.safetensors")) if device == "cpu" else ():
            result = subprocess.run(
                [run.binary, "verify", "--model", expected.parent, "--expected", expected],
                env=run.environment,
                capture_output=True,
                text=True,
            )
            records[f"verify {expected.parent.name}"] = {
                "code": result.returncode,
                "stdout": result.stdout,
            }
    return records


def compare(expected, found):
    """Names of the cases that differ, with the fields that do."""
    differing = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected:
            differing.append(f"{name}: in one record only")
            continue
        fields = [
            key
            for key in expected[name].keys() | found[name].keys()
            if expected[name].get(key) != found[name].get(key)
        ]
        if "files" in fields:
            ours, theirs = expected[name]["files"], found[name]["files"]
            fields.remove("files")
            fields += [
                file for file in ours.keys() | theirs.keys() if ours.get(file) != theirs.get(file)
            ]
        if fields:
            differing.append(f"{name}: {', '.join(sorted(fields))}")
    return differing


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--binary", type=pathlib.Path, default=SOURCE / "build/release/launch/t2r")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ranks", default="1,2,3")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args()
    found = run_all(
        options.binary, options.device, [int(n) for n in options.ranks.split(",")], options.only
    )
    if options.action == "record":
        options.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} cases recorded in {options.file}")
        return 0
    expected = json.loads(options.file.read_text())
    expected = {
        name: record
        for name, record in expected.items()
        if options.only in name or name.startswith(("start", "verify"))
    }
    differing = compare(expected, found)
    print("\n".join(differing) or f"{len(found)} cases, each bit for bit as recorded")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
