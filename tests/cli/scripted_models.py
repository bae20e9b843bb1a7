"""Models and tokenizers written by hand: what a model says is decided here, and compared as it is.

A scripted model is a GPT-2 whose output at a position depends on the position alone.
"""

import json
import math
import pathlib
import random
import struct

WIDTH = 64


def write_safetensors(path, tensors):
    """tensors: name -> (shape, floats), stored as float32."""
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        assert len(values) == math.prod(shape), name
        header[name] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [len(data), len(data) + 4 * len(values)],
        }
        data += struct.pack(f"<{len(values)}f", *values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def constants(shape, value):
    return shape, [float(value)] * math.prod(shape)


def write_scripted_model(
    folder, script, prompt_tokens, vocab_size, positions=None, scale=1, **config
):
    """A folder without tokenizer whose model says `script` behind a prompt of `prompt_tokens`
    tokens, and then token 5.

    scale: of its logits. config: more keys of config.json.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    positions = positions or prompt_tokens + len(script) + 8
    assert positions < WIDTH
    # Rows of Hadamard's matrix but the first: orthogonal, of mean 0 and mean square 1.
    norms = [
        [(-1.0) ** (i & column).bit_count() for column in range(WIDTH)]
        for i in range(1, positions + 1)
    ]
    rows = [1000.0 * x for row in norms for x in row]
    embedding = [[0.0] * WIDTH for _ in range(vocab_size)]
    for position in range(positions):
        step = position - prompt_tokens + 1
        token = script[step] if 0 <= step < len(script) else 5
        embedding[token] = [a + b for a, b in zip(embedding[token], norms[position])]
    tensors = {
        "wte.weight": ([vocab_size, WIDTH], [x for row in embedding for x in row]),
        "wpe.weight": ([positions, WIDTH], rows),
    }
    for name, shape in (
        ("attn.c_attn", [WIDTH, 3 * WIDTH]),
        ("attn.c_proj", [WIDTH, WIDTH]),
        ("mlp.c_fc", [WIDTH, 4 * WIDTH]),
        ("mlp.c_proj", [4 * WIDTH, WIDTH]),
    ):
        tensors[f"h.0.{name}.weight"] = constants(shape, 0)
        tensors[f"h.0.{name}.bias"] = constants(shape[1:], 0)
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        tensors[f"{name}.weight"] = constants([WIDTH], scale if name == "ln_f" else 1)
        tensors[f"{name}.bias"] = constants([WIDTH], 0)
    write_safetensors(
        folder / "model.safetensors",
        {f"transformer.{name}": value for name, value in tensors.items()},
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["GPT2LMHeadModel"],
                "model_type": "gpt2",
                "vocab_size": vocab_size,
                "n_positions": positions,
                "n_embd": WIDTH,
                "n_layer": 1,
                "n_head": 4,
                "n_inner": None,
                "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": True,
                "bos_token_id": None,
                "eos_token_id": None,
                **config,
            }
        )
    )
    return folder


def write_llama(folder, vocab_size, positions, **config):
    """A Llama of random weights."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    rng = random.Random(2)
    size, inner = 16, 24
    shapes = {"model.embed_tokens.weight": [vocab_size, size], "model.norm.weight": [size]}
    layer = "model.layers.0."
    for name in ("q", "k", "v", "o"):
        shapes[f"{layer}self_attn.{name}_proj.weight"] = [size, size]
    for name, shape in (("gate", [inner, size]), ("up", [inner, size]), ("down", [size, inner])):
        shapes[f"{layer}mlp.{name}_proj.weight"] = shape
    for name in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"{layer}{name}.weight"] = [size]
    write_safetensors(
        folder / "model.safetensors",
        {
            name: (shape, [rng.gauss(0, 1) for _ in range(math.prod(shape))])
            for name, shape in shapes.items()
        },
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "vocab_size": vocab_size,
                "hidden_size": size,
                "intermediate_size": inner,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": positions,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-6,
                "rope_theta": 10000.0,
                "tie_word_embeddings": True,
                "bos_token_id": None,
                "eos_token_id": None,
                **config,
            }
        )
    )
    return folder


def byte_symbols():
    """GPT-2's sign for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def write_byte_tokenizer(folder, specials=(), begin=None, words=()):
    """A tokenizer.json whose ids are the bytes, and behind them `specials` and other added `words`;
    `begin` stands in front of every text.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    added = [
        {
            "id": 256 + i,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": content in specials,
        }
        for i, content in enumerate([*specials, *words])
    ]
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    post = level
    if begin is not None:
        post = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": begin, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": begin, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": begin, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                begin: {"id": begin, "ids": [256 + specials.index(begin)], "tokens": [begin]}
            },
        }
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": added,
                "normalizer": None,
                "pre_tokenizer": level,
                "post_processor": post,
                "decoder": level,
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "fuse_unk": False,
                    "byte_fallback": False,
                    "vocab": vocabulary,
                    "merges": [],
                },
            }
        )
    )
    return folder
