#!/usr/bin/env python3
"""Turns a GGUF file of the Llama family into a Hugging Face folder.

Writes config.json, generation_config.json, model.safetensors (bfloat16), tokenizer.json,
tokenizer_config.json and manifest.json. Quantised blocks become float32 and are then rounded to the
nearest bfloat16, ties to even: bit for bit what transformers gives for the same file. Needs gguf,
numpy and xxhash; data/get_model.sh runs it in a venv of its own.

Source: llama.cpp's convert_hf_to_gguf.py (names, the q/k permutation), gguf.quants (block formats).
"""

import argparse
import json
import os
import re
import struct
import sys

import gguf
import numpy
import xxhash

# The rules by which text is cut before the merges, by GGUF's name for them. Source for smollm:
# HuggingFaceTB's tokenizer.json.
PRE_TOKENIZERS = {
    "smollm": [{"type": "Digits", "individual_digits": True}],
    "gpt-2": [],
}
CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class ConversionError(Exception):
    """The file is not one that this converter understands."""


class Metadata:
    """Key-value section of a GGUF file; a key that is missing is an error that names it."""

    def __init__(self, reader, path):
        self._fields = reader.fields
        self._path = path

    def __getitem__(self, key):
        if key not in self._fields:
            raise ConversionError(f"{self._path}: key {key} is missing")
        return self._fields[key].contents()

    def get(self, key, default=None):
        return self._fields[key].contents() if key in self._fields else default

    def real(self, key):
        """The shortest decimal that rounds to the file's float32: 1e-05, not 9.99999975e-06."""
        return float(str(numpy.float32(self[key])))


def hugging_face_name(name):
    """Hugging Face's name of a GGUF tensor; ConversionError for one that Llama does not have."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if not match or match.group(2) not in LAYER_NAMES:
        raise ConversionError(f"tensor {name} is not one of a Llama model without biases")
    return f"model.layers.{match.group(1)}.{LAYER_NAMES[match.group(2)]}.weight"


def unpermute(weight_OI, num_heads):
    """Query and key rows from GGUF's order (rotation pairs adjacent) to Hugging Face's (halves)."""
    rows, columns = weight_OI.shape
    pairs = weight_OI.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def to_bfloat16(values):
    """float32 array to the bytes of the nearest bfloat16, ties to even. Finite values only."""
    bits = numpy.ascontiguousarray(values, dtype=numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def read_weights(reader, metadata):
    """Every tensor in name order: {name: (shape, bytes of its bfloat16 values)}."""
    num_heads = {"attn_q": metadata["llama.attention.head_count"]}
    num_heads["attn_k"] = metadata.get("llama.attention.head_count_kv", num_heads["attn_q"])
    weights = {}
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        if not numpy.isfinite(values).all():
            raise ConversionError(f"tensor {tensor.name} holds a value that is not finite")
        kind = tensor.name.split(".")[-2]
        if kind in num_heads:
            values = unpermute(values, num_heads[kind])
        weights[name] = (list(values.shape), to_bfloat16(values))
    return dict(sorted(weights.items()))


def make_config(metadata, weights):
    """config.json of a LlamaForCausalLM."""
    hidden_size = metadata["llama.embedding_length"]
    num_heads = metadata["llama.attention.head_count"]
    rope_theta = metadata.real("llama.rope.freq_base")
    head_dim = hidden_size // num_heads
    for key in (
        "llama.rope.dimension_count",
        "llama.attention.key_length",
        "llama.attention.value_length",
    ):
        if metadata.get(key, head_dim) != head_dim:
            raise ConversionError(
                f"{key} is {metadata[key]}; only the head's size {head_dim} is supported"
            )
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        raise ConversionError(
            f"llama.rope.scaling.type {metadata['llama.rope.scaling.type']!r} is not supported"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": num_heads,
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", num_heads),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": metadata.real("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},  # transformers 5
        "rope_theta": rope_theta,  # transformers 4
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
    }


def make_tokenizer(metadata):
    """tokenizer.json of a byte-level BPE vocabulary."""
    model, pre = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if model != "gpt2":
        raise ConversionError(
            f"tokenizer.ggml.model is {model!r}; only 'gpt2' (byte-level BPE) is supported"
        )
    if pre not in PRE_TOKENIZERS:
        raise ConversionError(
            f"tokenizer.ggml.pre is {pre!r}; supported are {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    plain = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    added = [
        {"id": token_id, "content": token, **plain}
        for token_id, (token, kind) in enumerate(zip(tokens, types))
        if kind == CONTROL_TOKEN
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*PRE_TOKENIZERS[pre], byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def make_tokenizer_config(metadata):
    """tokenizer_config.json; the class that takes tokenizer.json as it is."""
    tokens = metadata["tokenizer.ggml.tokens"]
    config = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def write_json(folder, name, content):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=2)
        file.write("\n")


def write_safetensors(path, weights):
    """Header length (u64, little-endian), header in JSON padded with spaces to 8 bytes, values."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, values) in weights.items():
        header[name] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [offset, offset + len(values)],
        }
        offset += len(values)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in weights.values():
            file.write(values)


def write_manifest(folder):
    """Size and hash of every file, and of the manifest itself: base/folder_manifest.h reads it."""
    files = {}
    for name in sorted(os.listdir(folder)):
        digest = xxhash.xxh3_128()
        with open(os.path.join(folder, name), "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        size = os.path.getsize(os.path.join(folder, name))
        files[name] = {"bytes": size, "xxh3_128": digest.hexdigest()}
    zeros = 32 * "0"
    manifest = {
        "version": 2,
        "written_by": "get_model.sh",
        "files": files,
        "manifest_xxh3_128": zeros,
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
    text = text.replace(zeros, xxhash.xxh3_128(text.encode()).hexdigest())
    with open(os.path.join(folder, "manifest.json"), "w", encoding="utf-8") as file:
        file.write(text)


def convert(path, folder):
    """Writes `folder` from the GGUF file `path`; returns the numbers of tensors and parameters."""
    reader = gguf.GGUFReader(path)
    metadata = Metadata(reader, path)
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise ConversionError(
            f"{path}: general.architecture is {architecture!r}; only 'llama' is supported"
        )
    os.makedirs(folder, exist_ok=True)
    weights = read_weights(reader, metadata)
    config = make_config(metadata, weights)
    write_json(folder, "config.json", config)
    write_json(
        folder,
        "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    write_json(folder, "tokenizer.json", make_tokenizer(metadata))
    write_json(folder, "tokenizer_config.json", make_tokenizer_config(metadata))
    write_safetensors(os.path.join(folder, "model.safetensors"), weights)
    write_manifest(folder)
    return len(weights), sum(len(values) // 2 for _, values in weights.values())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "gguf", help="a GGUF file of the Llama family with a byte-level BPE vocabulary"
    )
    parser.add_argument("folder", help="where to write")
    arguments = parser.parse_args()
    try:
        num_tensors, num_parameters = convert(arguments.gguf, arguments.folder)
    except (ConversionError, OSError, ValueError) as error:
        sys.exit(f"gguf_to_hugging_face: {error}")
    print(f"{arguments.folder}: {num_tensors} tensors, {num_parameters:,} parameters in bfloat16")


if __name__ == "__main__":
    main()
