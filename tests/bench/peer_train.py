#!/usr/bin/env python3
"""Training speed of a GPT-2 in plain PyTorch on a GPU: what `t2r bench train` is compared with.

    python3 tests/bench/peer_train.py --sequence-length 1024 --batch-size-per-rank 64
    torchrun --nproc_per_node 2 tests/bench/peer_train.py --batch-size-per-rank 32

Model, batch and step are those of `t2r bench train --model.attention softmax`: 12 layers of 768, 12
heads, learned positions, tied embeddings, random tokens; forward, cross entropy over the whole
vocabulary, backward, clipping by the global norm, AdamW. PyTorch is used as its documentation
advises: torch.compile, bfloat16 autocast over float32 weights, scaled_dot_product_attention, fused
AdamW, DistributedDataParallel under torchrun.

Prints one line: tokens/s of all GPUs, milliseconds of the median step of the slowest rank, MFU with
the peak used, and most memory. Needs torch >= 2.5 with CUDA; any clone of the project has the rest.
"""

import argparse
import json
import os
import statistics
import sys

try:
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
except ImportError as error:
    sys.exit(f"peer_train.py: needs Python with torch: {error}")

# Dense bf16 peaks of NVIDIA's data sheets, TFLOP/s.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
ATTENTION_BACKENDS = ("cudnn", "flash")


class Block(nn.Module):
    """GPT-2's: norms in front of the branches, biases everywhere, tanh gelu."""

    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden)
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.mlp_norm = nn.LayerNorm(hidden)
        self.mlp_in = nn.Linear(hidden, 4 * hidden)
        self.mlp_out = nn.Linear(4 * hidden, hidden)

    def forward(self, x_BTC):
        packed = self.query_key_value(self.attention_norm(x_BTC))
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in packed.chunk(3, -1)
        )  # [B, H, T, d]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTC = x_BTC + self.attention_out(attended.transpose(1, 2).flatten(2))
        inner = F.gelu(self.mlp_in(self.mlp_norm(x_BTC)), approximate="tanh")
        return x_BTC + self.mlp_out(inner)


class Gpt2(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.tokens = nn.Embedding(options.vocab_size, options.hidden_size)
        self.positions = nn.Embedding(options.sequence_length, options.hidden_size)
        self.blocks = nn.ModuleList(
            Block(options.hidden_size, options.heads) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(options.hidden_size)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs_BT, targets_BT):
        """Mean cross entropy."""
        places_T = torch.arange(inputs_BT.shape[1], device=inputs_BT.device)
        x_BTC = self.tokens(inputs_BT) + self.positions(places_T)
        for block in self.blocks:
            x_BTC = block(x_BTC)
        logits = F.linear(self.norm(x_BTC), self.tokens.weight)  # tied
        return F.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten())


def flops_per_token(model, options):
    """As launch/bench/command_bench_train.cpp counts: 6 for every parameter in a product, and
    attention's, of which a token sees half of the context."""
    parameters = sum(p.numel() for p in model.parameters()) - model.positions.weight.numel()
    attention = 6 * options.layers * options.hidden_size * options.sequence_length
    return 6 * parameters + attention


def choose_attention(name):
    for backend in ATTENTION_BACKENDS:
        getattr(torch.backends.cuda, f"enable_{backend}_sdp")(backend == name)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)


def make_step(options, device):
    """The model, and a function that takes one step of training on the same random tokens."""
    torch.manual_seed(0)
    model = Gpt2(options).to(device)
    forward = model
    if dist.is_initialized():
        forward = DistributedDataParallel(
            model, device_ids=[device.index], gradient_as_bucket_view=True
        )
    if options.compile:
        forward = torch.compile(forward)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), fused=True)
    shape = (options.batch_size_per_rank, options.sequence_length)
    generator = torch.Generator(device).manual_seed(int(os.environ.get("RANK", 0)) + 1)
    inputs, targets = (
        torch.randint(options.vocab_size, shape, device=device, generator=generator)
        for _ in range(2)
    )

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = forward(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return model, step


def time_steps(step, untimed_steps, timed_steps, device):
    """Milliseconds of each step, of the slowest rank; the host runs ahead of the GPU, as in
    training that reads its losses later."""
    for _ in range(max(untimed_steps, 1)):
        step()
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(timed_steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        loss = step()
        mark.record()
    torch.cuda.synchronize()
    times = torch.tensor([a.elapsed_time(b) for a, b in zip(marks, marks[1:])], device=device)
    if dist.is_initialized():
        dist.all_reduce(times, dist.ReduceOp.MAX)
    return times.tolist(), loss.item()


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, text in (
        ("layers", 12, "blocks"),
        ("hidden-size", 768, "width"),
        ("heads", 12, "attention heads"),
        ("vocab-size", 50304, "tokens of the vocabulary"),
        ("sequence-length", 1024, "tokens a sequence"),
        ("batch-size-per-rank", 64, "sequences a step"),
        ("timed-steps", 30, "of which the median counts"),
        ("untimed-steps", 10, "before them; torch.compile works in the first ones"),
    ):
        parser.add_argument("--" + name, type=int, default=default, help=f"{text} [{default}]")
    parser.add_argument("--attention", choices=ATTENTION_BACKENDS, default="cudnn")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--peak-tflops", type=float, help="for MFU; default: the data sheet's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.hidden_size % options.heads:
        parser.error("--hidden-size must be a multiple of --heads")
    if options.timed_steps < 1:
        parser.error("--timed-steps must be 1 or more")
    return options


def report(options, model, times, loss):
    world = dist.get_world_size() if dist.is_initialized() else 1
    median_ms = statistics.median(times)
    tokens_per_s = options.batch_size_per_rank * options.sequence_length * world / median_ms * 1e3
    device = torch.cuda.get_device_name()
    peak = options.peak_tflops or next(
        (tflops for name, tflops in PEAK_TFLOPS.items() if name in device), None
    )
    row = {
        "tokens_per_s": round(tokens_per_s, 1),
        "ms_per_step": round(median_ms, 2),
        "ms_quickest": round(min(times), 2),
        "mfu": peak
        and round(tokens_per_s / world * flops_per_token(model, options) / peak / 1e12, 4),
        "peak_tflops": peak,
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "ranks": world,
        "loss": round(loss, 4),
        "device": device,
        "torch": torch.__version__,
        **vars(options),
    }
    if options.json:
        print(json.dumps(row))
        return
    mfu = f"{row['mfu']:.1%} MFU of {peak:g} TFLOP/s" if peak else "MFU unknown (--peak-tflops)"
    print(
        f"{device}, torch {torch.__version__}, {world} rank(s), {options.batch_size_per_rank} x"
        f" {options.sequence_length} tokens a rank: {tokens_per_s:,.0f} tokens/s,"
        f" {median_ms:.2f} ms a step, {mfu}, {row['memory_gib']:.1f} GiB"
    )


def main():
    options = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("peer_train.py: needs a GPU; torch.cuda.is_available() says that there is none")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    choose_attention(options.attention)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl", device_id=device)
    model, step = make_step(options, device)
    times, loss = time_steps(step, options.untimed_steps, options.timed_steps, device)
    if int(os.environ.get("RANK", 0)) == 0:
        report(options, model, times, loss)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
