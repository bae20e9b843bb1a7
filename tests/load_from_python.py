#!/usr/bin/env python3
"""Loads the GPU operators into Python and compares torch.ops.t2r.causal with a float64 formula.

Usage: load_from_python.py libt2r_ops.so

Ends with 0 if output and gradients agree within the bars of docs/kernels.md.
"""

import sys

import torch


def formula(q, k, v, weight, bias, floor=0.01):
    """o_t = sum_s<=t <phi(q_t), phi(k_s)> v_s / max(sum_s<=t <phi(q_t), phi(k_s)>, floor),
    phi(x) = relu(W x + b).
    """
    phi_q, phi_k = (torch.relu(torch.einsum("bthd,hkd->bthk", x, weight) + bias) for x in (q, k))
    scores = torch.einsum("bthk,bshk->bhts", phi_q, phi_k).tril()
    denominator = scores.sum(-1).transpose(1, 2).clamp_min(floor)
    return torch.einsum("bhts,bshd->bthd", scores, v) / denominator.unsqueeze(-1)


def outputs(function, inputs, grad_o):
    leaves = [x.detach().requires_grad_() for x in inputs]
    o = function(*leaves)
    return [o.detach(), *torch.autograd.grad(o, leaves, grad_o.to(o.dtype))]


def main():
    torch.ops.load_library(sys.argv[1])
    torch.manual_seed(3)
    failed = False
    for dtype, bar in ((torch.bfloat16, 1e-2), (torch.float32, 2e-5)):
        q, k, v, grad_o = (torch.randn(2, 777, 4, 64, device="cuda").to(dtype) for _ in range(4))
        weight = (torch.randn(4, 32, 64, device="cuda") / 8).to(dtype)
        bias = (torch.rand(4, 32, device="cuda") * 0.1 + 0.05).to(dtype)
        inputs = [q, k, v, weight, bias]
        actual = outputs(torch.ops.t2r.causal, inputs, grad_o)
        exact = outputs(formula, [x.double() for x in inputs], grad_o)
        for name, a, e in zip(("o", "dq", "dk", "dv", "dweight", "dbias"), actual, exact):
            error = ((a.double() - e).norm() / e.norm()).item()
            print(f"{str(dtype)[6:]:9s} {name:8s} relative error {error:.1e} (bar {bar:.0e})")
            failed |= not error <= bar  # NaN, too
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
