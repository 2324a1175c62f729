#!/usr/bin/env python3
"""What a PyTorch user would write instead: a vision transformer whose second blocks are mixtures of experts, with the usual
loop over experts. bench/peer.sh runs it beside Espalier; alone it prints one JSON object.

The model is that of `espalier bench train`: images of 32 x 32 x 3, patches of 4 x 4, pre-norm blocks of attention and SwiGLU,
every second of them a mixture (softmax over all experts, top-k, gates renormalised, Switch's balance loss 0.01), AdamW,
float32 (or autocast to bfloat16), random images made once.
"""
import argparse
import json
import re
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional


class SwiGLU(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    def __init__(self, width, hidden, experts, top_k):
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList([SwiGLU(width, hidden) for _ in range(experts)])
        self.top_k = top_k
        self.balance = None

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        scores = self.router(tokens).float().softmax(dim=-1)
        gates, chosen = scores.topk(self.top_k, dim=-1)
        gates = gates / gates.sum(dim=-1, keepdim=True)
        result = torch.zeros_like(tokens, dtype=torch.float32)
        loads = []
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            loads.append(token.numel() / chosen.numel())
            if token.numel():
                result.index_add_(0, token, expert(tokens[token]).float() * gates[token, slot].unsqueeze(-1))
        self.balance = len(self.experts) * (torch.tensor(loads) * scores.mean(dim=0)).sum()
        return result.view_as(x)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def attend(self, query, key, value):
        if hasattr(functional, "scaled_dot_product_attention"):
            return functional.scaled_dot_product_attention(query, key, value)
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        return scores.softmax(dim=-1) @ value

    def forward(self, x):
        images, tokens, width = x.shape
        parts = [part.view(images, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)]
        return self.projection(self.attend(*parts).transpose(1, 2).reshape(images, tokens, width))


class Block(nn.Module):
    def __init__(self, options, mixture):
        super().__init__()
        width = options.width
        self.attention_norm, self.layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, options.heads)
        self.layer = (Mixture(width, options.hidden, options.experts, options.top_k) if mixture
                      else SwiGLU(width, options.dense))

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.layer(self.layer_norm(x))


class Classifier(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.patches = nn.Conv2d(3, options.width, kernel_size=4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(64, options.width))
        self.blocks = nn.ModuleList([Block(options, number % 2 == 1) for number in range(options.depth)])
        self.norm = nn.LayerNorm(options.width)
        self.head = nn.Linear(options.width, 10)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(dim=1)))

    def balance(self):
        return sum(block.layer.balance for block in self.blocks if isinstance(block.layer, Mixture))


def make_step(options):
    """A function that does one training step or one inference of a batch."""
    torch.manual_seed(0)
    model = Classifier(options)
    images = torch.randn(options.batch, 3, 32, 32)
    labels = torch.randint(0, 10, (options.batch,))
    if options.infer:
        model.eval()

        def infer():
            with torch.inference_mode():
                model(images)

        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    def train():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bf16):
            loss = functional.cross_entropy(model(images), labels) + 0.01 * model.balance()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return train


def time_steps(step, options):
    for _ in range(options.warm_up):
        step()
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def blas():
    """Which library multiplies, and the vector instructions that PyTorch's own loops use."""
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    capability = getattr(torch.backends, "cpu", None)
    capability = capability.get_cpu_capability() if capability else "unknown"
    return {"blas": found.group(1) if found else "unknown", "capability": capability}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"width": 192, "depth": 6, "heads": 3, "dense": 512, "hidden": 384, "experts": 8, "top-k": 2,
                        "batch": 128, "steps": 11, "warm-up": 2, "threads": 2}.items():
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--infer", action="store_true", help="forward passes only")
    parser.add_argument("--bf16", action="store_true", help="train under autocast to bfloat16")
    return parser.parse_args()


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    seconds = time_steps(make_step(options), options)
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "seconds": seconds, **blas(),
                      "images_per_second": options.batch / seconds,
                      "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
