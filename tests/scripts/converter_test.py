"""data/gguf_to_hugging_face.py on a model in memory: the order of rows, rounding, what is refused.

Usage: converter_test.py DATA_FOLDER OUTPUT_FOLDER FOLDER_OF_XXH3
"""

import json
import pathlib
import struct
import sys
import types

import numpy as np

gguf = types.ModuleType("gguf")
gguf.quants = types.SimpleNamespace(dequantize=lambda data, kind: data)
sys.modules["gguf"] = gguf
sys.path[:0] = [sys.argv[1], sys.argv[3]]
sys.dont_write_bytecode = True
import xxh3

sys.modules["xxhash"] = xxh3
import gguf_to_hugging_face as converter

HEADS, KV_HEADS, DIM, HEAD_DIM = 4, 2, 24, 6
random = np.random.default_rng(1)


def permuted(weight, heads):
    """What llama.cpp stores: row 2i of a head is its row i, row 2i + 1 its row i + half."""
    out = np.empty_like(weight)
    for head in range(heads):
        for i in range(HEAD_DIM // 2):
            out[head * HEAD_DIM + 2 * i] = weight[head * HEAD_DIM + i]
            out[head * HEAD_DIM + 2 * i + 1] = weight[head * HEAD_DIM + HEAD_DIM // 2 + i]
    return out


def whole(*shape):
    """Integers that bfloat16 holds exactly."""
    return random.integers(-128, 128, shape).astype(np.float32)


query, key, embedding = whole(DIM, DIM), whole(KV_HEADS * HEAD_DIM, DIM), whole(3, DIM)
norm = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -(1 + 2**-8)] * 6, dtype=np.float32)
# Ties to even, above a tie, negative.
rounded = np.array([1, 1 + 2**-6, 1 + 2**-7, -1] * 6, dtype=np.float32)
tensors = {
    "token_embd.weight": embedding,
    "blk.0.attn_q.weight": permuted(query, HEADS),
    "blk.0.attn_k.weight": permuted(key, KV_HEADS),
    "output_norm.weight": norm,
}
metadata = {
    "general.architecture": "llama",
    "llama.embedding_length": DIM,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.feed_forward_length": 8,
    "llama.context_length": 16,
    "llama.block_count": 1,
    "llama.rope.freq_base": 1e5,
    "llama.rope.dimension_count": HEAD_DIM,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<end>", "a", "aa"],
    "tokenizer.ggml.token_type": [3, 1, 1],
    "tokenizer.ggml.merges": ["a a"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 0,
}


def reader(path):
    fields = {
        name: types.SimpleNamespace(contents=lambda value=value: value)
        for name, value in metadata.items()
    }
    return types.SimpleNamespace(
        fields=fields,
        tensors=[
            types.SimpleNamespace(name=name, data=value, tensor_type=0, shape=value.shape[::-1])
            for name, value in tensors.items()
        ],
    )


gguf.GGUFReader = reader

folder = pathlib.Path(sys.argv[2])
assert converter.convert("x.gguf", str(folder)) == (4, DIM * DIM + key.size + embedding.size + DIM)
raw = (folder / "model.safetensors").read_bytes()
size = struct.unpack("<Q", raw[:8])[0]
header, values = json.loads(raw[8 : 8 + size]), raw[8 + size :]
assert size % 8 == 0


def stored(name):
    entry = header[name]
    bits = np.frombuffer(values[slice(*entry["data_offsets"])], "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(entry["shape"])


np.testing.assert_array_equal(stored("model.layers.0.self_attn.q_proj.weight"), query)
np.testing.assert_array_equal(stored("model.layers.0.self_attn.k_proj.weight"), key)
np.testing.assert_array_equal(stored("model.embed_tokens.weight"), embedding)
np.testing.assert_array_equal(stored("model.norm.weight"), rounded)
manifest = (folder / "manifest.json").read_text()
assert xxh3.sealed(manifest) == manifest and manifest.endswith('"\n}\n')
assert {
    name: (entry["bytes"], entry["xxh3_128"])
    for name, entry in json.loads(manifest)["files"].items()
} == {
    path.name: (path.stat().st_size, xxh3.xxh3_128(path.read_bytes()).hexdigest())
    for path in folder.iterdir()
    if path.name != "manifest.json"
}
config = json.loads((folder / "config.json").read_text())
assert (
    config["rms_norm_eps"],
    config["rope_theta"],
    config["tie_word_embeddings"],
    config["head_dim"],
) == (1e-5, 1e5, True, 6)
tokenizer = json.loads((folder / "tokenizer.json").read_text())
assert [step["type"] for step in tokenizer["pre_tokenizer"]["pretokenizers"]] == [
    "Digits",
    "ByteLevel",
]
assert [(token["id"], token["content"]) for token in tokenizer["added_tokens"]] == [(0, "<end>")]
for field, value, text in (
    ("general.architecture", "qwen2", "qwen2"),
    ("tokenizer.ggml.pre", "llama3", "llama3"),
    ("llama.rope.dimension_count", 4, "dimension_count"),
    ("llama.rope.scaling.type", "yarn", "yarn"),
):
    kept = metadata.get(field)
    metadata[field] = value
    try:
        converter.convert("x.gguf", str(folder))
        sys.exit(f"{field} = {value} was accepted")
    except converter.ConversionError as error:
        assert text in str(error), error
    if kept is None:
        del metadata[field]
    else:
        metadata[field] = kept
tensors["blk.0.attn_q.bias"] = norm
try:
    converter.convert("x.gguf", str(folder))
    sys.exit("a bias was accepted")
except converter.ConversionError as error:
    assert "attn_q.bias" in str(error), error
print("converted")
