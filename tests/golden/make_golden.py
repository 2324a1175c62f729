#!/usr/bin/python3
"""Writes layers.h5 and training.h5, which tests/test_golden.c compares the library with.

Every layer is written here once more, plainly, in PyTorch and in double precision; gradients come from
autograd. Needs the Debian packages python3-torch and python3-h5py. The output is the same bytes every time:

    /usr/bin/python3 tests/golden/make_golden.py

Parameters have the library's names and layouts and lie one after the other in the order of the attribute `names`;
the attribute `model` is the part of the model's config that matters, as YAML. Inputs and parameters are rounded so that they are exact in single precision.
"""
import json
import math
import pathlib

import h5py
import numpy
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
FOLDER = pathlib.Path(__file__).parent
LEAST_GAP = 1e-4
BASE = {"image_height": 8, "image_width": 8, "image_channels": 2, "classes": 5, "width": 8, "blocks": 1,
        "mixing": "none", "positions": False, "norm": "layer", "layers": ["dense"],
        "stem": {"kind": "patch", "patch": 4}, "feed_forward": {"activation": "relu", "bias": False, "hidden": 8}}


class NearTie(Exception):
    """Rounding could decide a selection (top-k, maximum) another way: the next seed is tried."""


def first_without_tie(make, seed):
    while True:
        try:
            return make(torch.Generator().manual_seed(seed))
        except NearTie:
            seed += 1000


def rounded(generator, shape, deviation, step):
    return (torch.randn(shape, generator=generator) * deviation / step).round() * step


def check_gap(sorted_values, k):
    """sorted_values, largest first along the last dimension: the k-th must stand clear of the next."""
    if k < sorted_values.shape[-1] and (sorted_values[..., k - 1] - sorted_values[..., k]).min().item() < LEAST_GAP:
        raise NearTie


# --- layers: p maps the library's names to tensors, s is the scope ------------------------------------------


def norm(p, s, x, kind):
    if kind == "rms":
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * p[s + ".gain"]
    return F.layer_norm(x, x.shape[-1:], p[s + ".gain"], p[s + ".bias"], 1e-5)


def convolve(x, weight, bias, **options):
    """NHWC images and [out, k, k, in] weights."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, **options).permute(0, 2, 3, 1)


def max_pool(x, size):
    n, h, w, c = x.shape
    windows = x.reshape(n, h // size, size, w // size, size, c).permute(0, 1, 3, 5, 2, 4).flatten(-2)
    check_gap(windows.sort(-1, descending=True).values, 1)
    return windows.max(-1).values


def stem(p, x, c):
    kind = c["stem"]["kind"]
    if kind == "patch":
        x = convolve(x, p["stem.weight"], p["stem.bias"], stride=c["stem"]["patch"])
    elif kind == "flatten":
        x = x.flatten(1) @ p["stem.weight"].T + p["stem.bias"]
    else:
        for i, pool in enumerate(c["stem"]["pools"]):
            x = convolve(x, p[f"stem.{i}.weight"], p[f"stem.{i}.bias"], padding=1)
            if pool > 1:
                x = max_pool(x, pool)
            x = F.gelu(norm(p, f"stem.{i}.norm", x, c["norm"]))
    x = x.reshape(x.shape[0], -1, c["width"])
    return x + p["stem.positions"] if c["positions"] else x


def mixing(p, s, x, c):
    n, t, width = x.shape
    if c["mixing"] == "attention":
        heads = c["heads"]
        qkv = (x @ p[s + ".qkv.weight"].T + p[s + ".qkv.bias"]).reshape(n, t, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        shares = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width // heads), -1)
        return (shares @ v).transpose(1, 2).reshape(n, t, width) @ p[s + ".projection.weight"].T + p[s + ".projection.bias"]
    kernel = p[s + ".weight"]  # [k, k, width]
    side = math.isqrt(t)
    grid = x.reshape(n, side, side, width)
    return convolve(grid, kernel.permute(2, 0, 1).unsqueeze(-1), p[s + ".bias"], padding=kernel.shape[0] // 2,
                    groups=width).reshape(n, t, width)



def feed_forward(p, s, x, c, expert=None, kept=None):
    """Of a dense layer, a shared expert, or expert `expert` of a bank."""
    def get(name):
        value = p.get(s + "." + name)
        return value if value is None or expert is None else value[expert]
    activation = c["feed_forward"]["activation"]
    if activation == "swiglu":
        pre = x @ get("gate_up").T
        if get("gate_up_bias") is not None:
            pre = pre + get("gate_up_bias")
        gate, up = pre.chunk(2, -1)
        magnitude, h = F.silu(gate).abs(), F.silu(gate) * up
    else:
        pre = x @ get("up").T
        if get("up_bias") is not None:
            pre = pre + get("up_bias")
        h = F.relu(pre) if activation == "relu" else F.gelu(pre)
        magnitude = h.abs()
    if kept is not None:
        ordered, chosen = magnitude.detach().sort(stable=True, dim=-1, descending=True)
        if activation != "relu":  # equal zeros of a ReLU contribute nothing, whichever are kept
            check_gap(ordered, kept)
        h = h * torch.zeros_like(h).scatter(-1, chosen[..., :kept], 1.0)
    y = h @ get("down")
    return y if get("down_bias") is None else y + get("down_bias")


def moe(p, s, x, c, kept=None):
    """-> output, {"balance": .., "z": ..}."""
    m, r = c["moe"], c["moe"]["router"]
    tokens = x.reshape(-1, x.shape[-1])
    logits = tokens @ p[s + ".router"].T
    experts, k = m["experts"], m["top_k"]
    score = (lambda z: torch.softmax(z, -1)) if r["score"] == "softmax" else torch.sigmoid
    scores = score(logits)
    ordered, chosen = logits.sort(stable=True, dim=-1, descending=True)
    check_gap(ordered, k)
    chosen = chosen[:, :k]
    gates = score(logits.gather(-1, chosen)) if r["score_selected_only"] else scores.gather(-1, chosen)
    if r["renormalise"]:
        gates = gates / gates.sum(-1, keepdim=True)
    outputs = torch.stack([feed_forward(p, s + ".experts", tokens, c, e, kept) for e in range(experts)], 1)
    y = (gates.unsqueeze(-1) * outputs.gather(1, chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))).sum(1)
    if m["shared_hidden"]:
        y = y + feed_forward(p, s + ".shared", tokens, c)
    wanted = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    losses = {}
    if r["balance_weight"]:
        losses["balance"] = experts * (wanted * scores.mean(0)).sum()
    if r["z_weight"]:
        losses["z"] = (torch.logsumexp(logits, -1) ** 2).mean()
    return y.reshape(x.shape), losses


# --- what the library would declare, as {name: (shape, deviation, centre)} ------------------------------------


def norm_shapes(s, kind, width):
    return {s + ".gain": ((width,), 0.2, 1), **({s + ".bias": ((width,), 0.2, 0)} if kind == "layer" else {})}


def stem_shapes(c):
    kind, width, channels = c["stem"]["kind"], c["width"], c["image_channels"]
    shapes = {}
    if kind == "convolution":
        for i, out in enumerate(c["stem"]["channels"] + [width]):
            shapes[f"stem.{i}.weight"] = ((out, 3, 3, channels), 1 / math.sqrt(9 * channels), 0)
            shapes[f"stem.{i}.bias"] = ((out,), 0.2, 0)
            shapes.update(norm_shapes(f"stem.{i}.norm", c["norm"], out))
            channels = out
    else:
        pixels = c["image_height"] * c["image_width"] * channels
        patch = c["stem"].get("patch")
        shape = (width, pixels) if kind == "flatten" else (width, patch, patch, channels)
        shapes = {"stem.weight": (shape, 1 / math.sqrt(numpy.prod(shape[1:])), 0), "stem.bias": ((width,), 0.2, 0)}
    if c["positions"]:
        tokens = (c["image_height"] // c["stem"]["patch"]) * (c["image_width"] // c["stem"]["patch"])
        shapes["stem.positions"] = ((tokens, width), 0.3, 0)
    return shapes


def mixing_shapes(s, c):
    width = c["width"]
    if c["mixing"] == "convolution":
        return {s + ".weight": ((c["kernel"], c["kernel"], width), 1 / c["kernel"], 0), s + ".bias": ((width,), 0.2, 0)}
    deviation = 1 / math.sqrt(width)
    return {s + ".qkv.weight": ((3 * width, width), deviation, 0), s + ".qkv.bias": ((3 * width,), 0.2, 0),
            s + ".projection.weight": ((width, width), deviation, 0), s + ".projection.bias": ((width,), 0.2, 0)}


def feed_forward_shapes(s, c, hidden, experts=()):
    width, f = c["width"], c["feed_forward"]
    name, rows = ("gate_up", 2 * hidden) if f["activation"] == "swiglu" else ("up", hidden)
    shapes = {f"{s}.{name}": ((*experts, rows, width), 1 / math.sqrt(width), 0),
              f"{s}.down": ((*experts, hidden, width), 1 / math.sqrt(hidden), 0)}
    if f["bias"]:
        shapes[f"{s}.{name}_bias"] = ((*experts, rows), 0.2, 0)
        shapes[f"{s}.down_bias"] = ((*experts, width), 0.2, 0)
    return shapes


def moe_shapes(s, c):
    m = c["moe"]
    shapes = {s + ".router": ((m["experts"], c["width"]), 1 / math.sqrt(c["width"]), 0)}
    shapes.update(feed_forward_shapes(s + ".experts", c, m["hidden"], (m["experts"],)))
    if m["shared_hidden"]:
        shapes.update(feed_forward_shapes(s + ".shared", c, m["shared_hidden"]))
    return shapes


def make_parameters(generator, shapes):
    return {name: (centre + rounded(generator, shape, deviation, 1 / 128)).requires_grad_()
            for name, (shape, deviation, centre) in shapes.items()}


# --- files -------------------------------------------------------------------------------------------------


def without_times(kind):
    """The newest layout of groups is the smallest, but keeps times, which would make each run's bytes differ."""
    properties = h5py.h5p.create(kind)
    properties.set_obj_track_times(False)
    return properties


def new_file(name):
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    path = str(FOLDER / name).encode()
    return h5py.File(h5py.h5f.create(path, h5py.h5f.ACC_TRUNC, without_times(h5py.h5p.FILE_CREATE), access))


def new_group(file, name):
    return h5py.Group(h5py.h5g.create(file.id, name.encode(), gcpl=without_times(h5py.h5p.GROUP_CREATE)))


def put(group, name, value):
    """Half precision where it is exact: rounded inputs and parameters. Compression pays for large arrays only."""
    data = value.detach().numpy()
    data = data.astype(numpy.int32 if data.dtype.kind == "i" else numpy.float32)
    if (data.astype(numpy.float16) == data).all():
        data = data.astype(numpy.float16)
    large = data.size > 4096
    group.create_dataset(name, data=data, shuffle=large, compression=9 if large else None)


def put_all(group, tensors):
    for name, value in tensors.items():
        put(group, name, value)


def put_flat(group, name, tensors):
    """One after the other in one array: a data set each would be more headers than data."""
    put(group, name, torch.cat([t.detach().flatten() for t in tensors]))


def merged(*parts):
    """Sections are merged, everything else replaced."""
    out = {}
    for part in parts:
        for key, value in part.items():
            out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


MOE = {"layers": ["moe"], "feed_forward": {"activation": "swiglu"},
       "moe": {"experts": 4, "top_k": 2, "hidden": 4, "shared_hidden": 0, "neurons_kept": 1.0,
               "router": {"score": "softmax", "score_selected_only": False, "renormalise": True, "noise": 0.0,
                          "balance_weight": 0.0, "z_weight": 0.0}}}
MONE = merged(MOE, {"layers": ["mone"], "moe": {"neurons_kept": 0.4}})


def router(top_k=2, **settings):
    return {"moe": {"top_k": top_k, "router": settings}}


def activation(name, bias=False):
    return {"feed_forward": {"activation": name, "bias": bias}}


CASES = {
    "norm layer": {"norm": "layer"},
    "norm rms": {"norm": "rms"},
    "stem patch": {"positions": True},
    "stem convolution layer": {"stem": {"kind": "convolution", "channels": [4], "pools": [2, 2]}},
    "stem convolution rms": {"norm": "rms", "stem": {"kind": "convolution", "channels": [4, 4], "pools": [1, 2, 1]}},
    "stem flatten": {"stem": {"kind": "flatten"}},
    "mixing attention": {"mixing": "attention", "heads": 2, "stem": {"patch": 2}},
    "mixing convolution": {"mixing": "convolution", "kernel": 3, "stem": {"patch": 2}},
    "ffn relu": activation("relu"),
    "ffn gelu": activation("gelu"),
    "ffn swiglu": activation("swiglu"),
    "ffn gelu bias": activation("gelu", True),
    "ffn swiglu bias": activation("swiglu", True),
    "moe top1 raw": merged(MOE, router(1, renormalise=False)),
    "moe top1 selected": merged(MOE, router(1, score_selected_only=True, renormalise=False)),
    "moe top2 raw": merged(MOE, router(renormalise=False)),
    "moe top2 renormalised": merged(MOE, router()),
    "moe top2 selected": merged(MOE, router(score_selected_only=True, renormalise=False)),
    "moe top3 sigmoid raw": merged(MOE, router(3, score="sigmoid", renormalise=False)),
    "moe top2 sigmoid renormalised": merged(MOE, router(score="sigmoid")),
    "moe top2 sigmoid selected": merged(MOE, router(score="sigmoid", score_selected_only=True, renormalise=False)),
    "moe top2 sigmoid selected renormalised": merged(MOE, router(score="sigmoid", score_selected_only=True)),
    "moe top2 relu bias": merged(MOE, activation("relu", True)),
    "moe top2 shared gelu bias": merged(MOE, activation("gelu", True), {"moe": {"shared_hidden": 3}}),
    "moe top1 balance": merged(MOE, router(1, renormalise=False, balance_weight=0.5)),
    "moe top2 balance z": merged(MOE, router(balance_weight=0.5, z_weight=0.25)),
    "moe top2 sigmoid balance z": merged(MOE, router(score="sigmoid", balance_weight=0.5, z_weight=0.25)),
    "mone top2 swiglu": MONE,
    "mone top1 gelu": merged(MONE, activation("gelu"), router(1, renormalise=False)),
    "mone top2 relu bias": merged(MONE, activation("relu", True)),
    "mone top2 swiglu shared balance": merged(MONE, router(balance_weight=0.5), {"moe": {"shared_hidden": 3}}),
}


def case_parts(kind, c):
    """-> shapes of the parameters, shape of the input, forward(p, x) -> output, losses."""
    width, images = c["width"], (2, c["image_height"], c["image_width"], c["image_channels"])
    no_losses = {}
    if kind == "norm":
        return norm_shapes("norm", c["norm"], width), (3, 4, width), lambda p, x: (norm(p, "norm", x, c["norm"]), no_losses)
    if kind == "stem":
        return stem_shapes(c), images, lambda p, x: (stem(p, x, c), no_losses)
    if kind == "mixing":
        return mixing_shapes("mixing", c), (2, 16, width), lambda p, x: (mixing(p, "mixing", x, c), no_losses)
    if kind == "ffn":
        return (feed_forward_shapes("ffn", c, c["feed_forward"]["hidden"]), (3, 4, width),
                lambda p, x: (feed_forward(p, "ffn", x, c), no_losses))
    kept = math.ceil(c["moe"]["neurons_kept"] * c["moe"]["hidden"]) if kind == "mone" else None
    return moe_shapes("moe", c), (3, 5, width), lambda p, x: moe(p, "moe", x, c, kept)


def run_case(kind, c, generator):
    shapes, input_shape, forward = case_parts(kind, c)
    p = make_parameters(generator, shapes)
    x = rounded(generator, input_shape, 1, 1 / 32).requires_grad_()
    y, losses = forward(p, x)
    upstream = rounded(generator, y.shape, 1, 1 / 32)
    total = (y * upstream).sum()
    for loss_kind, loss in losses.items():
        total = total + c["moe"]["router"][loss_kind + "_weight"] * loss
    total.backward()
    return {"input": x, "upstream": upstream, "output": y, "d_input": x.grad, **losses}, p


def write_case(file, name, settings, seed):
    c = merged(BASE, settings)
    tensors, p = first_without_tie(lambda generator: run_case(name.split()[0], c, generator), seed)
    group = new_group(file, name)
    group.attrs["model"] = numpy.bytes_(json.dumps(c))
    put_all(group, tensors)
    group.attrs["names"] = numpy.bytes_(" ".join(p))
    put_flat(group, "parameters", p.values())
    put_flat(group, "gradients", [t.grad for t in p.values()])


# --- three training steps of a small ViT-MoE ------------------------------------------------------------------

TRAINED = merged(BASE, MOE, {"width": 32, "blocks": 2, "mixing": "attention", "heads": 2, "positions": True, "image_channels": 3,
                             "classes": 10,
                             "moe": {"hidden": 6, "router": {"balance_weight": 0.1}}})
STEPS, BATCH = 3, 8
# Where a gradient is zero but for rounding (the bias of attention's keys), Adam divides rounding by epsilon; with
# the usual 1e-8 such elements would move by up to a whole step.
OPTIMIZERS = {
    "adamw": {"learning_rate": 0.01, "router_rate": 0.5, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99,
              "epsilon": 1e-4, "momentum": 0.0, "clip_norm": 1.0},
    "sgd": {"learning_rate": 0.05, "router_rate": 2.0, "weight_decay": 0.1, "beta1": 0.0, "beta2": 0.0,
            "epsilon": 1e-8, "momentum": 0.9, "clip_norm": 2.0},
}
SHARES = [0.5, 1.0, 0.25]  # of the peak learning rate


def trained_shapes(c):
    shapes = stem_shapes(c)
    for i in range(c["blocks"]):
        for part, inner in (("mixing", mixing_shapes(f"blocks.{i}.mixing", c)), ("moe", moe_shapes(f"blocks.{i}.moe", c))):
            shapes.update(norm_shapes(f"blocks.{i}.{part}.norm", c["norm"], c["width"]))
            shapes.update(inner)
    shapes.update(norm_shapes("norm", c["norm"], c["width"]))
    shapes["head.weight"] = ((c["classes"], c["width"]), 0.2, 0)
    shapes["head.bias"] = ((c["classes"],), 0.2, 0)
    return shapes


def classify(p, images, c):
    x, balance = stem(p, images, c), []
    for i in range(c["blocks"]):
        s = f"blocks.{i}."
        x = x + mixing(p, s + "mixing", norm(p, s + "mixing.norm", x, c["norm"]), c)
        y, losses = moe(p, s + "moe", norm(p, s + "moe.norm", x, c["norm"]), c)
        x = x + y
        balance.append(losses["balance"])
    x = norm(p, "norm", x.mean(1), c["norm"])
    return x @ p["head.weight"].T + p["head.bias"], torch.stack(balance)


def decays(name):
    return not (name.endswith(("bias", ".gain", ".positions")))


def update(p, state, kind, o, step, share):
    squares = sum((t.grad ** 2).sum() for t in p.values())
    length = squares.sqrt().item()
    for name, w in p.items():
        g = w.grad * min(1.0, o["clip_norm"] / length)
        rate = o["learning_rate"] * share * (o["router_rate"] if name.endswith(".router") else 1)
        decay = o["weight_decay"] if decays(name) else 0
        m, v = state.setdefault(name, (torch.zeros_like(w), torch.zeros_like(w)))
        if kind == "sgd":
            m = o["momentum"] * m + g
            move = m
        else:
            m = o["beta1"] * m + (1 - o["beta1"]) * g
            v = o["beta2"] * v + (1 - o["beta2"]) * g * g
            move = m / (1 - o["beta1"] ** step) / (torch.sqrt(v / (1 - o["beta2"] ** step)) + o["epsilon"])
        state[name] = (m, v)
        with torch.no_grad():
            w -= rate * (move + decay * w)
    return length


def run_training(c, generator):
    start = make_parameters(generator, trained_shapes(c))
    images = rounded(generator, (STEPS, BATCH, c["image_height"], c["image_width"], c["image_channels"]), 1, 1 / 16)
    labels = torch.randint(0, c["classes"], (STEPS, BATCH), generator=generator)
    runs = {kind: train(kind, o, c, start, images, labels) for kind, o in OPTIMIZERS.items()}
    return start, {"images": images, "labels": labels, "shares": torch.tensor(SHARES)}, runs


def train(kind, o, c, start, images, labels):
    p = {name: t.detach().clone().requires_grad_() for name, t in start.items()}
    state, task, balance, lengths = {}, [], [], []
    for step in range(STEPS):
        for t in p.values():
            t.grad = None
        logits, raw = classify(p, images[step], c)
        loss = F.cross_entropy(logits, labels[step])
        (loss + c["moe"]["router"]["balance_weight"] * raw.sum()).backward()
        task.append(loss.item())
        balance.append(raw.detach())
        lengths.append(update(p, state, kind, o, step + 1, SHARES[step]))
    assert max(lengths) > o["clip_norm"], "nothing was clipped"
    return {"task": torch.tensor(task), "balance": torch.stack(balance), "gradient_norm": torch.tensor(lengths)}, p


def with_16_bits(values):
    """Rounded to 16 significant bits, which compresses and is finer than what float32 keeps of value + change."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2**16).round() / 2**16, exponent)


def write_training(file):
    start, data, runs = first_without_tie(lambda generator: run_training(TRAINED, generator), 2024)
    file.attrs["model"] = numpy.bytes_(json.dumps(TRAINED))
    put_all(file, data)
    file.attrs["names"] = numpy.bytes_(" ".join(start))
    put_flat(file, "parameters", start.values())
    for kind, (curves, p) in runs.items():
        group = new_group(file, kind)
        for name, value in OPTIMIZERS[kind].items():
            group.attrs[name] = value
        put_all(group, curves)
        put_flat(group, "changes", [with_16_bits(t - start[name]) for name, t in p.items()])


def main():
    with new_file("layers.h5") as file:
        for seed, (name, settings) in enumerate(CASES.items()):
            write_case(file, name, settings, seed)
    with new_file("training.h5") as file:
        write_training(file)


if __name__ == "__main__":
    main()
