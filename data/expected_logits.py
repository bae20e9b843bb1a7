#!/usr/bin/env python3
"""Writes what transformers computes for a Hugging Face causal language model, to compare t2r with.

expected.safetensors holds input_ids [1, T] and greedy [1, 25] (the first five ids and 20 generated
ones) in int64, and logits [1, T, V] in float32: the weights as they are stored, the arithmetic in
float32 on the CPU. Needs torch and transformers; `data/get_model.sh NAME --expected` runs it.
"""

import argparse
import os

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TEXT = (
    "The capital of France is Paris. "
    "Water boils at 100 degrees Celsius at sea level, and 2 + 2 = 4."
)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", help="a Hugging Face folder; expected.safetensors is written there"
    )
    folder = parser.parse_args().folder
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
        greedy = model.generate(
            ids[:, :5], max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    path = os.path.join(folder, "expected.safetensors")
    save_file(
        {"input_ids": ids, "logits": logits.contiguous(), "greedy": greedy.contiguous()},
        path + ".partial",
    )
    os.chmod(path + ".partial", 0o644)  # safetensors makes it readable by its owner only
    os.replace(path + ".partial", path)
    print(f"{path}: logits {list(logits.shape)}, greedy {tokenizer.decode(greedy[0])!r}")


if __name__ == "__main__":
    main()
