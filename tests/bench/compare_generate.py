#!/usr/bin/env python3
"""Speed of generation on a GPU: `t2r bench generate` beside transformers, SmolLM2-135M's shape with
random weights in bfloat16.

    python3 tests/bench/compare_generate.py build/release/launch/t2r \\
        [--lengths 1024 65536] [--batch-sizes 1 16] [--no-compile]

Needs torch with CUDA and transformers (4.49 to 4.57 have been seen to work). Prints microseconds a
step, greedy, behind each length: T2R and softmax by t2r; softmax by transformers with a cache that
grows, and with a static one under torch.compile ("reduce-overhead": CUDA graphs).
"""

import argparse
import json
import statistics
import subprocess
import time

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

LAYERS, HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY = 30, 576, 9, 3, 1536, 49152
HEAD_SIZE = HIDDEN // HEADS
WARMUP, ROUNDS, STEPS_A_ROUND = 6, 5, 8


def measure_t2r(binary, attention, batch, lengths):
    command = [
        binary,
        "bench",
        "generate",
        "--model.family",
        "llama",
        "--model.layers",
        LAYERS,
        "--model.hidden-size",
        HIDDEN,
        "--model.heads",
        HEADS,
        "--model.kv-heads",
        KV_HEADS,
        "--model.intermediate-size",
        INTERMEDIATE,
        "--vocab-size",
        VOCABULARY,
        "--model.attention",
        attention,
        "--sequences-at-once",
        batch,
        "--lengths",
        *lengths,
        "--json",
    ]
    output = subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True
    ).stdout
    return [json.loads(line) for line in output.splitlines()]


def make_model(longest):
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=INTERMEDIATE,
        vocab_size=VOCABULARY,
        max_position_embeddings=longest + 256,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return LlamaForCausalLM(config).eval()


def growing_step(model, batch, length):
    """A step on a cache that is concatenated anew for every token, as generate() does it."""
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(
            *(torch.randn(batch, KV_HEADS, length, HEAD_SIZE, device="cuda") for _ in range(2)),
            layer,
        )
    return (
        lambda token: model(token, past_key_values=cache, use_cache=True)
        .logits[:, -1]
        .argmax(-1, keepdim=True)
    )


def compiled_step(model, batch, length):
    """A step on a static cache, compiled, as generate(cache_implementation="static") does it."""
    cache = StaticCache(
        config=model.config,
        max_cache_len=length + 64,
        max_batch_size=batch,
        device="cuda",
        dtype=torch.bfloat16,
    )
    position = torch.full((1,), length, dtype=torch.int64, device="cuda")

    def forward(token, at):
        return (
            model(
                token,
                past_key_values=cache,
                cache_position=at,
                position_ids=at.expand(batch, 1),
                use_cache=True,
            )
            .logits[:, -1]
            .argmax(-1, keepdim=True)
        )

    forward(
        torch.zeros((batch, 1), dtype=torch.int64, device="cuda"), position
    )  # the cache makes its tensors here: not within a graph's memory
    compiled = torch.compile(forward, mode="reduce-overhead")

    def step(token):
        chosen = compiled(token, position).clone()
        position.add_(1)
        return chosen

    return step


def measure_steps(step, batch):
    """Median microseconds a step."""
    token = torch.zeros((batch, 1), dtype=torch.int64, device="cuda")
    for _ in range(WARMUP):
        token = step(token)
    torch.cuda.synchronize()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(STEPS_A_ROUND):
            token = step(token)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / STEPS_A_ROUND)
    return 1e6 * statistics.median(times)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("binary")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 65536])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    model = make_model(max(options.lengths))

    def report(name, batch, length, microseconds):
        print(
            f"{name:32} batch {batch:3} behind {length:6}: {microseconds:9.0f} us a step, "
            f"{1e6 * batch / microseconds:9.0f} tokens/s",
            flush=True,
        )

    for batch in options.batch_sizes:
        for attention in ("t2r", "softmax"):
            for row in measure_t2r(options.binary, attention, batch, options.lengths):
                report(f"t2r, {attention}", batch, row["length"], 1e6 * row["seconds_median"])
        peers = {"transformers, growing cache": growing_step}
        if not options.no_compile:
            peers["transformers, static, compiled"] = compiled_step
        for name, make_step in peers.items():
            for length in options.lengths:
                with torch.no_grad():
                    report(
                        name, batch, length, measure_steps(make_step(model, batch, length), batch)
                    )
                torch.cuda.empty_cache()
                torch._dynamo.reset()


if __name__ == "__main__":
    main()
