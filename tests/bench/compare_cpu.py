#!/usr/bin/env python3
"""Training speed on the CPU: `t2r train` beside plain PyTorch (peer_language_model.py), same shape,
same threads, in turn.

    source launch/env.sh
    $T2R_PYTHON tests/bench/compare_cpu.py build/release/launch/t2r [--threads 1 2] [--rounds 3]

Makes its own text and vocabulary; needs nothing but the build. Prints tokens/s of the median step,
best round of each side.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
SHAPE = {"layers": 6, "hidden": 256, "heads": 4, "intermediate": 704, "seq-len": 256, "batch": 8}
VOCAB = 8000
WARMUP = 3


def make_corpus(folder, binary):
    """Random words over a vocabulary that is large enough for VOCAB pieces."""
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choice(letters) for _ in range(rng.randint(2, 9))) for _ in range(20000)]
    text = "\n".join(" ".join(rng.choice(words) for _ in range(60)) for _ in range(6000))
    (folder / "text.txt").write_text(text + "\n")
    subprocess.run(
        [
            binary,
            "prepare",
            "vocab",
            "--inputs",
            folder / "text.txt",
            "--output",
            folder / "v.model",
            "--vocab-size",
            str(VOCAB),
            "--type",
            "bpe",
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [
            binary,
            "prepare",
            "lm",
            "--inputs",
            folder / "text.txt",
            "--tokenizer",
            folder / "v.model",
            "--output",
            folder / "shards",
        ],
        check=True,
        capture_output=True,
    )


def measure_t2r(binary, folder, attention, threads, steps):
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    subprocess.run(
        [
            binary,
            "train",
            "--output",
            run,
            "--train-data",
            folder / "shards",
            "--steps",
            str(steps),
            "--threads",
            str(threads),
            "--sequence-length",
            str(SHAPE["seq-len"]),
            "--batch-size",
            str(SHAPE["batch"]),
            "--model.layers",
            str(SHAPE["layers"]),
            "--model.hidden-size",
            str(SHAPE["hidden"]),
            "--model.heads",
            str(SHAPE["heads"]),
            "--model.intermediate-size",
            str(SHAPE["intermediate"]),
            "--model.attention",
            attention,
        ],
        check=True,
        capture_output=True,
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"][WARMUP:]
    return SHAPE["seq-len"] * SHAPE["batch"] / statistics.median(line["seconds"] for line in steps)


def measure_peer(attention, threads, steps):
    arguments = [item for key, value in SHAPE.items() for item in (f"--{key}", str(value))]
    result = subprocess.run(
        [
            sys.executable,
            HERE / "peer_language_model.py",
            *arguments,
            "--vocab",
            str(VOCAB),
            "--attention",
            attention,
            "--threads",
            str(threads),
            "--steps",
            str(steps),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(result.stdout.splitlines()[-1])["tokens_per_s"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("binary", type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_corpus(folder, options.binary)
        print(
            f"shape {SHAPE}, vocabulary {VOCAB}, float32, AdamW; tokens/s, "
            f"best of {options.rounds} rounds"
        )
        print("| attention | threads | PyTorch | t2r | ratio |\n|---|--:|--:|--:|--:|")
        for threads in options.threads:
            for attention in ("softmax", "t2r"):
                ours = theirs = 0.0
                for _ in range(options.rounds):
                    theirs = max(theirs, measure_peer(attention, threads, options.steps))
                    ours = max(
                        ours, measure_t2r(options.binary, folder, attention, threads, options.steps)
                    )
                print(
                    f"| {attention} | {threads} | {theirs:,.0f} | {ours:,.0f} "
                    f"| {ours / theirs:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
