#!/usr/bin/env python3
"""Writes families/NAME.json: a tiny config of each family, the names and shapes of its tensors, and
the logits and greedy tokens of transformers with the weights of tests/cli/model_files.py's
formula_tensor. Needs transformers 5.24, torch 2.11 and safetensors.

Usage: make_family_goldens.py [NAME...]
       make_family_goldens.py --expect FOLDER...

With --expect transformers reads folders that t2r wrote, and leaves expected.safetensors there for
`t2r verify`.
"""

import json
import pathlib
import sys
import tempfile

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cli"))
from model_files import formula_tensor, write_model  # noqa: E402

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = {
    "gpt2": {"n_inner": 40},
    "llama": {},
    "mistral": {"sliding_window": None},
    "olmo2": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "starcoder2": {},
}
LENGTH = 8
NEW_TOKENS = 16


def load(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def logits_of(model, input_ids):
    with torch.no_grad():
        return model(input_ids).logits


def greedy_of(model):
    """Random tokens, and the same with what the model says behind them."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(model.config.vocab_size, (2, LENGTH), generator=generator)
    greedy = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    return input_ids, greedy


def make(name):
    config = CONFIG_MAPPING[name](**SIZES, **FAMILIES[name])
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    tied = getattr(config, "tie_word_embeddings", False)
    shapes = {
        key: list(value.shape)
        for key, value in empty.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    entries = {"architectures": [type(empty).__name__], **json.loads(config.to_json_string())}
    with tempfile.TemporaryDirectory() as folder:
        tensors = {key: formula_tensor(key, shape) for key, shape in shapes.items()}
        write_model(pathlib.Path(folder) / "model", entries, tensors)
        model = load(pathlib.Path(folder) / "model")
    input_ids, greedy = greedy_of(model)
    logits = logits_of(model, input_ids)
    print(f"{name}: logits of {logits.std():.3f}, greedy {greedy[0, LENGTH:].tolist()}")
    golden = {
        "config": entries,
        "shapes": shapes,
        "input_ids": input_ids.tolist(),
        "greedy": greedy.tolist(),
        "logits": [[[float(f"{x:.7g}") for x in row] for row in rows] for rows in logits.tolist()],
    }
    lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in golden.items())
    (HERE / "families" / f"{name}.json").write_text(f"{{\n{lines}\n}}\n")


def expect(folder):
    model = load(folder)
    input_ids, greedy = greedy_of(model)
    tensors = {"input_ids": input_ids, "greedy": greedy, "logits": logits_of(model, input_ids)}
    save_file(tensors, pathlib.Path(folder) / "expected.safetensors")
    print(f"{folder}: {type(model).__name__}")


def main():
    if sys.argv[1:2] == ["--expect"]:
        for folder in sys.argv[2:]:
            expect(folder)
        return
    (HERE / "families").mkdir(exist_ok=True)
    for name in sys.argv[1:] or FAMILIES:
        make(name)


if __name__ == "__main__":
    main()
