#!/usr/bin/env python3
"""Training speed of a decoder language model in plain PyTorch on the CPU.

What a user would run instead of t2r. Families, with tied embeddings and untrained float32 weights:
llama (RMSNorm, rotary positions, SwiGLU, grouped queries, no biases) and gpt2 (LayerNorm, learned
positions, tanh GELU, biases).
Attention: softmax through F.scaled_dot_product_attention, or t2r: phi(x) = relu(W x + b), one map
per key/value head for its queries and keys, chunked causal linear attention of 64 positions, the
denominator clamped from below at 1e-2.
A step: forward, cross entropy, backward, clip_grad_norm_(1.0), AdamW, on random tokens. Prints one
line of JSON.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 64
MIN_DENOMINATOR = 1e-2


def chunked_linear_attention(phi_q, phi_k, v):
    """Normalised causal linear attention, one state for the G query heads of a key/value head.

    phi_q [B,H,G,T,K], phi_k [B,H,1,T,K], v [B,H,1,T,D] -> [B,H,G,T,D]
    """
    groups, T = phi_q.shape[2:4]
    pad = -T % CHUNK
    if pad:
        phi_q, phi_k, v = (F.pad(x, (0, 0, 0, pad)) for x in (phi_q, phi_k, v))
    # [B,H,N,G*C,*] of N chunks: a group's queries are more rows of the same products. With G = 1
    # these are views.
    q, k, v = (x.unflatten(3, (-1, CHUNK)).transpose(2, 3).flatten(3, 4) for x in (phi_q, phi_k, v))
    states = torch.matmul(k.transpose(-1, -2), v)  # [B,H,N,K,D], of each chunk
    sums = k.sum(-2)  # [B,H,N,K]
    states = F.pad(states.cumsum(2)[:, :, :-1], (0, 0, 0, 0, 1, 0))  # of all chunks before
    sums = F.pad(sums.cumsum(2)[:, :, :-1], (0, 0, 1, 0))
    scores = torch.matmul(q, k.transpose(-1, -2))
    scores = scores.unflatten(3, (groups, CHUNK)).tril().flatten(3, 4)
    numerator = torch.matmul(scores, v) + torch.matmul(q, states)
    denominator = scores.sum(-1, keepdim=True) + torch.matmul(q, sums.unsqueeze(-1))
    out = numerator / denominator.clamp_min(MIN_DENOMINATOR)
    return out.unflatten(3, (groups, CHUNK)).transpose(2, 3).flatten(3, 4)[:, :, :, :T]


class Attention(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.heads, self.kv_heads = args.heads, args.kv_heads
        self.head_dim = args.hidden // args.heads
        self.kind = args.attention
        bias = args.family == "gpt2"
        self.sizes = [self.heads * self.head_dim] + 2 * [self.kv_heads * self.head_dim]
        self.qkv = nn.Linear(args.hidden, sum(self.sizes), bias=bias)
        self.out = nn.Linear(args.hidden, args.hidden, bias=bias)
        if self.kind == "t2r":
            k = args.feature_size
            bound = self.head_dim**-0.5
            weight = torch.empty(self.kv_heads, 1, self.head_dim, k)
            self.map_weight = nn.Parameter(weight.uniform_(-bound, bound))
            bias = torch.empty(self.kv_heads, 1, 1, k)
            self.map_bias = nn.Parameter(bias.uniform_(-bound, bound))

    def features(self, x):
        return torch.relu(torch.matmul(x, self.map_weight) + self.map_bias)

    def forward(self, x, rotary):
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for y in self.qkv(x).split(self.sizes, -1)
        )  # [B,H,T,D]
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if self.kind == "softmax":
            y = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self.kv_heads != self.heads
            )
        else:
            q, k, v = (z.unflatten(1, (self.kv_heads, -1)) for z in (q, k, v))
            phi_q, phi_k = self.features(q * self.head_dim**-0.5), self.features(k)
            y = chunked_linear_attention(phi_q, phi_k, v).flatten(1, 2)
        return self.out(y.transpose(1, 2).flatten(2))


def rotary_tables(length, head_dim):
    frequencies = 1e4 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(torch.arange(length), frequencies)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


class SwiGlu(nn.Module):
    def __init__(self, hidden, intermediate):
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, args):
        super().__init__()
        norm = RmsNorm if args.family == "llama" else nn.LayerNorm
        self.attention_norm, self.mlp_norm = norm(args.hidden), norm(args.hidden)
        self.attention = Attention(args)
        if args.family == "llama":
            self.mlp = SwiGlu(args.hidden, args.intermediate)
        else:
            self.mlp = nn.Sequential(
                nn.Linear(args.hidden, args.intermediate),
                nn.GELU(approximate="tanh"),
                nn.Linear(args.intermediate, args.hidden),
            )

    def forward(self, x, rotary):
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.tokens = nn.Embedding(args.vocab, args.hidden)
        self.blocks = nn.ModuleList(Block(args) for _ in range(args.layers))
        llama = args.family == "llama"
        self.norm = RmsNorm(args.hidden) if llama else nn.LayerNorm(args.hidden)
        self.positions = None if llama else nn.Parameter(torch.empty(args.seq_len, args.hidden))
        if llama:
            cos, sin = rotary_tables(args.seq_len, args.hidden // args.heads)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and "map_" not in name:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, labels):
        """Mean cross entropy; ids, labels [B,T]."""
        x = self.tokens(ids)
        rotary = None
        if self.positions is None:
            rotary = self.cos, self.sin
        else:
            x = x + self.positions
        for block in self.blocks:
            x = block(x, rotary)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=("llama", "gpt2"), default="llama")
    for name, default in (
        ("layers", 6),
        ("hidden", 256),
        ("heads", 4),
        ("kv-heads", 0),
        ("intermediate", 768),
        ("vocab", 8192),
        ("seq-len", 256),
        ("batch", 8),
        ("steps", 20),
        ("warm-up", 3),
        ("threads", 1),
        ("feature-size", 32),
    ):
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--attention", choices=("softmax", "t2r"), default="softmax")
    parser.add_argument(
        "--optimizer",
        choices=("fused", "foreach", "loop"),
        default="fused",
        help="which AdamW of torch; fused is its quickest on CPUs",
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile; the warm-up then compiles"
    )
    args = parser.parse_args()
    args.kv_heads = args.kv_heads or args.heads
    if args.hidden % args.heads or args.heads % args.kv_heads or args.hidden // args.heads % 2:
        sys.exit("--hidden must be a multiple of 2 x --heads, and --heads one of --kv-heads")
    if args.family == "gpt2" and args.kv_heads != args.heads:
        sys.exit("--family gpt2 has no grouped queries: leave --kv-heads out")
    return args


def time_steps(step, batches, warm_up):
    seconds = []
    for ids, labels in batches:
        start = time.perf_counter()
        loss = step(ids, labels)
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:], loss


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = LanguageModel(args)
    forward = torch.compile(model) if args.compile else model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-4, fused=args.optimizer == "fused", foreach=args.optimizer == "foreach"
    )

    def step(ids, labels):
        loss = forward(ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    tokens = torch.randint(args.vocab, (args.warm_up + args.steps, args.batch, args.seq_len + 1))
    seconds, loss = time_steps(step, ((t[:, :-1], t[:, 1:]) for t in tokens), args.warm_up)
    median = statistics.median(seconds)
    print(
        json.dumps(
            {
                "tokens_per_s": round(args.batch * args.seq_len / median, 1),
                "ms_per_step": round(median * 1e3, 2),
                "ms_quickest": round(min(seconds) * 1e3, 2),
                "loss": round(loss, 4),
                "parameters": sum(p.numel() for p in parameters),
                "torch": torch.__version__,
                **vars(args),
            }
        )
    )


if __name__ == "__main__":
    main()
