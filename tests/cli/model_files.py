"""Tiny Hugging Face folders, made without transformers: what a test of model files begins with."""

import json
import math
import random
import struct

CONFIGS = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "vocab_size": 320,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "vocab_size": 320,
    },
}
EMBEDDINGS = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}
FORMATS = {"F32": "f", "F64": "d", "F16": "e"}


def encode(values, dtype):
    if dtype == "BF16":  # the upper half of a float32
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{FORMATS[dtype]}", *values)


def random_tensor(rng, shape, dtype="F32", mean=0.0):
    numel = 1
    for size in shape:
        numel *= size
    return dtype, list(shape), encode([rng.gauss(mean, 0.3) for _ in range(numel)], dtype)


def formula_tensor(name, shape):
    """A tensor that follows from its name and shape: large, so that an error anywhere shows."""
    rng = random.Random(name)
    mean = 1.0 if ("norm" in name or "ln_" in name) and "bias" not in name else 0.0
    return (
        "F32",
        list(shape),
        encode([mean + 0.6 * (rng.random() - 0.5) for _ in range(math.prod(shape))], "F32"),
    )


def shapes(family, head):
    if family == "llama":
        layer = {
            "input_layernorm.weight": [16],
            "post_attention_layernorm.weight": [16],
            "self_attn.q_proj.weight": [16, 16],
            "self_attn.k_proj.weight": [8, 16],
            "self_attn.v_proj.weight": [8, 16],
            "self_attn.o_proj.weight": [16, 16],
            "mlp.gate_proj.weight": [24, 16],
            "mlp.up_proj.weight": [24, 16],
            "mlp.down_proj.weight": [16, 24],
        }
        result = {"model.embed_tokens.weight": [320, 16], "model.norm.weight": [16]}
        result.update(
            {f"model.layers.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
        )
    else:
        layer = {
            "ln_1.weight": [16],
            "ln_1.bias": [16],
            "ln_2.weight": [16],
            "ln_2.bias": [16],
            "attn.c_attn.weight": [16, 48],
            "attn.c_attn.bias": [48],
            "attn.c_proj.weight": [16, 16],
            "attn.c_proj.bias": [16],
            "mlp.c_fc.weight": [16, 64],
            "mlp.c_fc.bias": [64],
            "mlp.c_proj.weight": [64, 16],
            "mlp.c_proj.bias": [16],
        }
        result = {
            "transformer.wte.weight": [320, 16],
            "transformer.wpe.weight": [64, 16],
            "transformer.ln_f.weight": [16],
            "transformer.ln_f.bias": [16],
        }
        result.update(
            {f"transformer.h.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
        )
    if head:
        result["lm_head.weight"] = [320, 16]
    return result


def random_weights(family, head, dtype="F32", seed=1):
    """Name to (dtype, shape, bytes)."""
    rng = random.Random(seed)
    return {
        name: random_tensor(rng, shape, dtype, 1.0 if "norm" in name or ".ln_" in name else 0.0)
        for name, shape in shapes(family, head).items()
    }


def safetensors_bytes(tensors, metadata=None):
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            entry["shape"],
            data[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
    }


def write_model(folder, config, tensors, shards=1):
    """A folder with config.json and the weights, in `shards` files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
        return folder
    names, weight_map = list(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = {name: tensors[name] for name in names[shard::shards]}
        (folder / file).write_bytes(safetensors_bytes(mine, {"format": "pt"}))
        weight_map.update({name: file for name in mine})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder
