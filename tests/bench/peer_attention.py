#!/usr/bin/env python3
"""Causal attention on a GPU from Python: t2r's operators, softmax, flash-linear-attention.

    python3 tests/bench/peer_attention.py --library build/release/model/libt2r_ops.so
    python3 tests/bench/peer_attention.py --shapes 8x2048x16x64x32 --peers t2r,cudnn

Peers, all in bfloat16 on tensors [B, T, H, d]:
  t2r        torch.ops.t2r.causal: T2R's map relu(W x + b) with K features, and attention
  hedgehog   torch.ops.t2r.causal_hedgehog: Hedgehog's map with 2 d features, and attention
  cudnn      softmax, scaled_dot_product_attention by cuDNN
  flash      softmax, scaled_dot_product_attention by FlashAttention
  fla        T2R's map by torch, flash-linear-attention's chunk_linear_attn without a normaliser
A peer that cannot run, because it is not installed or its backward fails, is named with the reason.

Times are device microseconds: the median replay of a CUDA graph that holds one call for each of
several sets of inputs, which together do not fit the L2 cache. "both" is forward and backward.
Needs torch >= 2.5 with CUDA; --library needs a build of t2r with CUDA and that torch's version.
"""

import argparse
import statistics
import sys

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"peer_attention.py: needs Python with torch >= 2.5: {error}")

SHAPES = "8x512x16x64x32,8x2048x16x64x32,8x8192x16x64x32,8x2048x16x128x64,1x32768x16x64x32"
LEAST_INPUT_BYTES = 200 << 20  # several times the L2 cache of an H100 or H200
REPLAYS = 15


class Inputs:
    """One set: q, k, v [B, T, H, d], the maps, and gradients of the output."""

    def __init__(self, shape, seed):
        B, T, H, d, K = shape
        generator = torch.Generator("cuda").manual_seed(seed)

        def normal(*sizes):
            x = torch.randn(*sizes, device="cuda", generator=generator)
            return x.to(torch.bfloat16)

        self.q, self.k, self.v, self.grad_o = (normal(B, T, H, d) for _ in range(4))
        self.qkv = torch.cat((self.q, self.k, self.v), 2)
        self.weight, self.bias = normal(H, K, d) * d**-0.5, normal(H, K).abs() * 0.1
        self.hedgehog_weight, self.hedgehog_bias = normal(H, d, d) * d**-0.5, normal(H, d) * 0.1


def t2r(library):
    torch.ops.load_library(library)
    names = ("q", "k", "v", "weight", "bias")

    def run(q, k, v, weight, bias):
        return torch.ops.t2r.causal(q, k, v, weight, bias, scale=q.shape[-1] ** -0.5)

    return names, run


def hedgehog(library):
    torch.ops.load_library(library)
    names = ("qkv", "hedgehog_weight", "hedgehog_bias")

    def run(qkv, weight, bias):
        return torch.ops.t2r.causal_hedgehog(qkv, weight, bias, qkv.shape[2] // 3)

    return names, run


def softmax(backend):
    def run(q, k, v):
        with sdpa_kernel([backend]):
            o = F.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True
            )
        return o.transpose(1, 2)

    return ("q", "k", "v"), run


def fla():
    from fla.ops.linear_attn import chunk_linear_attn

    def run(q, k, v, weight, bias):
        phi_q, phi_k = (
            torch.relu(torch.einsum("bthd,hkd->bthk", x, weight) + bias)
            for x in (q * q.shape[-1] ** -0.5, k)
        )
        return chunk_linear_attn(phi_q, phi_k, v, scale=1.0, normalize=False)[0]

    return ("q", "k", "v", "weight", "bias"), run


def make_peer(name, library):
    """The names of a peer's inputs and its function, or the reason why it is left out, a string."""
    if name in ("t2r", "hedgehog") and not library:
        return "no --library"
    makers = {
        "t2r": lambda: t2r(library),
        "hedgehog": lambda: hedgehog(library),
        "cudnn": lambda: softmax(SDPBackend.CUDNN_ATTENTION),
        "flash": lambda: softmax(SDPBackend.FLASH_ATTENTION),
        "fla": fla,
    }
    try:
        return makers[name]()
    except (ImportError, OSError) as error:
        return first_line(error)


def calls_of(peer, sets, backward):
    """One function per set of inputs; with `backward` it makes the gradients of all of them too."""
    names, run = peer

    def call(inputs):
        leaves = [getattr(inputs, name).detach().requires_grad_(backward) for name in names]
        if not backward:
            return lambda: run(*leaves)
        return lambda: torch.autograd.grad(run(*leaves), leaves, inputs.grad_o)

    return [call(inputs) for inputs in sets]


def microseconds(calls):
    """Device time of one call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[2:])


def first_line(error):
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def measure(name, peer, shapes, forward_only):
    """Prints a row per shape: microseconds forward, and forward and backward."""
    for shape in shapes:
        B, T, H, d, _ = shape
        num_sets = max(2, -(-LEAST_INPUT_BYTES // (2 * 3 * B * T * H * d)))
        sets = [Inputs(shape, seed) for seed in range(num_sets)]
        cells = []
        for backward in (False, True):
            if backward and forward_only:
                cells.append("-")
                continue
            try:
                cells.append(f"{microseconds(calls_of(peer, sets, backward)):.1f}")
            except Exception as error:  # whatever a peer does: the others are still measured
                cells.append(first_line(error)[:80])
        print(f"| {name} | {' x '.join(map(str, shape))} | {' | '.join(cells)} |", flush=True)
        del sets


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    peers = "t2r,hedgehog,cudnn,flash,fla"
    parser.add_argument("--library", help="libt2r_ops.so of a build with CUDA")
    parser.add_argument("--shapes", default=SHAPES, help="BxTxHxdxK, separated by commas")
    parser.add_argument("--peers", default=peers, help=f"of {peers}; fla last: it may fail")
    parser.add_argument("--forward-only", action="store_true")
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    if unknown := set(options.peers) - set(peers.split(",")):
        parser.error(f"--peers {','.join(sorted(unknown))}; allowed: {peers}")
    try:
        options.shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes.split(",")]
    except ValueError:
        parser.error(f"--shapes {options.shapes}; allowed: whole numbers as 8x2048x16x64x32")
    if any(len(shape) != 5 for shape in options.shapes):
        parser.error("--shapes needs five numbers each: BxTxHxdxK")
    return options


def main():
    options = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit(
            "peer_attention.py: needs a GPU; torch.cuda.is_available() says that there is none"
        )
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16, microseconds")
    print("| peer | B x T x H x d x K | forward | both |\n|---|---|--:|--:|")
    for name in options.peers:
        peer = make_peer(name, options.library)
        if isinstance(peer, str):
            print(f"| {name} | not run: {peer} | | |")
        else:
            measure(name, peer, options.shapes, options.forward_only)


if __name__ == "__main__":
    main()
