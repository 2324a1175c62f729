"""The whole model in NumPy, from images to logits, and all that criteria and losses look at on the way."""

import math
from dataclasses import dataclass

import numpy as np

from . import routers
from .numerics import (ACTIVATIONS, EPSILON, GATES, attention, convolution, depthwise_convolution, gelu, layer_norm,
                       log_sum_exp, max_pool, rms_norm, top_k)


@dataclass
class Rows:
    """The slots that an expert computes, of one layer."""

    slot: np.ndarray  # [rows] which of the routing's slots; Soft MoE: which slot of the images in turn
    expert: np.ndarray  # [rows] logical
    stored: np.ndarray
    pre: list  # of each row: gate resp. up before the activation, [neurons]
    hidden: list  # after activation and product, before any selection
    mask: list  # selected neurons
    output: np.ndarray  # [rows, width], before the gate


@dataclass
class Record:
    """What one pass of a mixture layer did."""

    scope: str
    input: np.ndarray
    output: np.ndarray
    routing: routers.Routing
    request: routers.Request
    rows: Rows


def expert_weights(checkpoint, scope, stored):
    """gate (or None), up, down as [neurons, width], biases or None, of a stored expert of a layer."""
    p, layer = checkpoint.parameters, checkpoint.layers[scope]
    gated = ACTIVATIONS[checkpoint.config["feed_forward"]["activation"]][0]
    name = "gate_up" if gated else "up"
    if layer.rank:
        return factored_weights(checkpoint, scope, stored, gated)
    up, down = p[f"{scope}.experts.{name}"], p[f"{scope}.experts.down"]
    up_bias = p.get(f"{scope}.experts.{name}_bias")
    down_bias = p.get(f"{scope}.experts.down_bias")
    parts = 2 if gated else 1
    if layer.widths is None:
        up, down = up[stored], down[stored]
        up_bias = None if up_bias is None else up_bias[stored]
    else:
        first, size = layer.widths[:stored].sum(), layer.widths[stored]
        up, down = up[parts * first : parts * (first + size)], down[first : first + size]
        up_bias = None if up_bias is None else up_bias.ravel()[parts * first : parts * (first + size)]
    return _split(up, up_bias, down, None if down_bias is None else down_bias[stored], gated)


def factored_weights(checkpoint, scope, stored, gated):
    """U V + S with the rows of S put where they belong."""
    p, layer = checkpoint.parameters, checkpoint.layers[scope]

    def side(name, counts, parts):
        u, v = p[f"{scope}.experts.{name}_u"][stored], p[f"{scope}.experts.{name}_v"][stored]
        rank = u.shape[1]
        part = len(u) // parts
        w = np.concatenate([u[i * part : (i + 1) * part] @ v[i * rank : (i + 1) * rank] for i in range(parts)])
        first = counts[:stored].sum()
        rows = p[f"{scope}.experts.{name}_rows"][first : first + counts[stored]].astype(int)
        w[rows] += p[f"{scope}.experts.{name}_s"][first : first + counts[stored]]
        return w

    name = "gate_up" if gated else "up"
    up_bias, down_bias = p.get(f"{scope}.experts.{name}_bias"), p.get(f"{scope}.experts.down_bias")
    return _split(side(name, layer.sparse_up_rows, 2 if gated else 1), None if up_bias is None else up_bias[stored],
                  side("down", layer.sparse_down_rows, 1).T, None if down_bias is None else down_bias[stored], gated)


def _split(up, up_bias, down, down_bias, gated):
    if not gated:
        return {"gate": None, "gate_bias": None, "up": up, "up_bias": up_bias, "down": down, "down_bias": down_bias}
    f = len(up) // 2
    return {"gate": up[:f], "gate_bias": None if up_bias is None else up_bias[:f], "up": up[f:],
            "up_bias": None if up_bias is None else up_bias[f:], "down": down, "down_bias": down_bias}


def run_expert(w, x, activation, kept=None, ranking="activation"):
    """x [rows, width] -> (pre, hidden, mask, output). With `kept` a MoNE's selection (arXiv 2510.05781): the neurons of
    largest |act(W_gate x)|, or of largest |W_gate x|; with two matrices W_up takes the part of W_gate."""
    gated, function = ACTIVATIONS[activation]
    act = GATES[function]
    first, first_bias = (w["gate"], w["gate_bias"]) if gated else (w["up"], w["up_bias"])
    pre = x @ first.T + (0 if first_bias is None else first_bias)
    hidden = act(pre)
    magnitude = np.abs(hidden if ranking == "activation" else pre)
    if gated:
        hidden = hidden * (x @ w["up"].T + (0 if w["up_bias"] is None else w["up_bias"]))
    mask = np.ones_like(hidden, bool)
    if kept is not None and kept < hidden.shape[1]:
        mask[:] = False
        np.put_along_axis(mask, top_k(magnitude, kept), True, axis=1)
    output = np.where(mask, hidden, 0) @ w["down"] + (0 if w["down_bias"] is None else w["down_bias"])
    return pre, hidden, mask, output


class Model:
    """Forward passes of a checkpoint's model."""

    def __init__(self, checkpoint):
        self.checkpoint, self.config, self.p = checkpoint, checkpoint.config, checkpoint.parameters

    # --- norms, stem, mixing ------------------------------------------------------------------------------------

    def norm(self, scope, x, training):
        kind = self.config["norm"]
        gain = self.p[f"{scope}.gain"]
        if kind == "rms":
            return rms_norm(x, gain)
        if kind == "layer":
            return layer_norm(x, gain, self.p[f"{scope}.bias"])
        flat = x.reshape(-1, x.shape[-1])
        mean = flat.mean(0) if training else self.p[f"{scope}.mean"]
        variance = flat.var(0) if training else self.p[f"{scope}.variance"]
        return (x - mean) / np.sqrt(variance + EPSILON) * gain + self.p[f"{scope}.bias"]

    def stem(self, images, training):
        stem = self.config["stem"]
        if stem["kind"] == "flatten":
            x = images.reshape(len(images), -1) @ self.p["stem.weight"].T + self.p["stem.bias"]
        elif stem["kind"] == "patch":
            x = convolution(images, self.p["stem.weight"], self.p["stem.bias"], stem["patch"], 0)
        else:
            x = self._stages(images, training)
        x = x.reshape(len(images), -1, self.config["width"])
        return x + self.p["stem.positions"] if self.config["positions"] else x

    def _stages(self, x, training):
        stem = self.config["stem"]
        if stem["whitening"]:
            x = gelu(convolution(x, self.p["stem.whitening.weight"], self.p["stem.whitening.bias"], 1, 1))
        for stage, pool in enumerate(stem["pools"]):
            for depth in range(1 + stem["extra_convolutions"]):
                scope = f"stem.{stage}" if depth == 0 else f"stem.{stage}.{depth}"
                x = convolution(x, self.p[f"{scope}.weight"], self.p.get(f"{scope}.bias"), 1, 1)
                if depth == 0 and pool > 1:
                    x = max_pool(x, pool)
                x = gelu(self.norm(f"{scope}.norm", x, training))
        return x

    def grid(self, images):
        stem = self.config["stem"]
        factor = stem["patch"] if stem["kind"] == "patch" else int(np.prod(stem["pools"]))
        return images.shape[1] // factor, images.shape[2] // factor

    def mixing(self, scope, x, grid):
        if self.config["mixing"] == "attention":
            qkv = x @ self.p[f"{scope}.qkv.weight"].T + self.p[f"{scope}.qkv.bias"]
            mixed = attention(qkv, self.config["heads"])
            return mixed @ self.p[f"{scope}.projection.weight"].T + self.p[f"{scope}.projection.bias"]
        shaped = x.reshape(len(x), *grid, x.shape[-1])
        return depthwise_convolution(shaped, self.p[f"{scope}.weight"], self.p[f"{scope}.bias"]).reshape(x.shape)

    # --- feed-forward -------------------------------------------------------------------------------------------

    def dense(self, scope, x):
        gated = ACTIVATIONS[self.config["feed_forward"]["activation"]][0]
        name = "gate_up" if gated else "up"
        w = _split(self.p[f"{scope}.{name}"], self.p.get(f"{scope}.{name}_bias"), self.p[f"{scope}.down"],
                   self.p.get(f"{scope}.down_bias"), gated)
        flat = x.reshape(-1, x.shape[-1])
        return run_expert(w, flat, self.config["feed_forward"]["activation"])[3].reshape(x.shape)

    def neurons_kept(self, block):
        """A MoNE's K_N: a share of the neurons rounded up, or a number; None in an MoE."""
        moe = self.config["moe"]
        if self.checkpoint.kind(block) != "mone":
            return None
        kept = moe["neurons_kept"]
        per_layer = moe["neurons_kept_per_layer"]
        if per_layer:
            before = sum(self.checkpoint.kind(b) != "dense" for b in range(block))
            kept = per_layer[before % len(per_layer)]
        return max(1, math.ceil((kept if kept > 1 else kept * moe["hidden"]) - 1e-9))

    def request(self, scope, tokens, images, training=False):
        moe = self.config["moe"]
        layer = self.checkpoint.layers[scope]
        return routers.Request(moe["router"], layer, moe["top_k"], moe["experts"], moe["members"], tokens, images,
                               training, self.p.get(f"{scope}.router_bias"))

    def logits(self, scope, x):
        router = self.config["moe"]["router"]
        weights = self.p[f"{scope}.router"]
        return routers.router_logits(x, weights.reshape(-1, x.shape[1]), router["cosine"], router["temperature"])

    def route(self, scope, request, x, noise=None, choices=None):
        policy = request.router["policy"]
        if policy == "hash":
            return routers.hashed(request, choices)
        logits = self.logits(scope, x)
        if policy == "soft":
            return routers.soft(request, x, logits, logits.shape[1] // request.layer.experts)
        if policy == "expert_choice":
            return routers.expert_choice(request, logits, noise)
        if policy == "even":
            return routers.even(request, logits, noise)
        return routers.token_choice(request, logits, noise, choices)

    def compute_rows(self, scope, inputs, expert, slot):
        """inputs [rows, width] through the expert of each; only experts with weights."""
        layer = self.checkpoint.layers[scope]
        stored = layer.index[expert]
        output = np.zeros_like(inputs)
        pre, hidden, mask = [None] * len(inputs), [None] * len(inputs), [None] * len(inputs)
        kept = self.neurons_kept(self.checkpoint.block_of(scope))
        for s in range(layer.stored):
            rows = np.flatnonzero(stored == s)
            if not len(rows):
                continue
            p, h, m, output[rows] = run_expert(expert_weights(self.checkpoint, scope, s), inputs[rows],
                                               self.config["feed_forward"]["activation"], kept,
                                               self.config["moe"]["neuron_ranking"])
            for i, r in enumerate(rows):
                pre[r], hidden[r], mask[r] = p[i], h[i], m[i]
        return Rows(slot, expert, stored, pre, hidden, mask, output)

    def mixture(self, scope, x, images, training=False, noise=None, choices=None):
        """x [T, width] -> Record."""
        request = self.request(scope, len(x), images, training)
        routing = self.route(scope, request, x, noise, choices)
        y = np.zeros_like(x)
        if routing.dispatch is not None:
            y, rows = self._soft(scope, request, routing, x)
        else:
            slot = np.flatnonzero(routing.served)
            rows = self.compute_rows(scope, x[routing.token[slot]], routing.expert[slot], slot)
            np.add.at(y, routing.token[slot], routing.gate[slot][:, None] * rows.output)
        if self.config["moe"]["shared_hidden"]:
            y = y + self.dense(f"{scope}.shared", x)
        return Record(scope, x, y, routing, request, rows)

    def _soft(self, scope, request, routing, x):
        shaped = x.reshape(request.images, -1, x.shape[1])
        slots = routing.dispatch.shape[2]
        inputs = np.einsum("nts,ntc->nsc", routing.dispatch, shaped).reshape(-1, x.shape[1])
        per_expert = slots // request.layer.experts
        expert = np.tile(np.repeat(np.arange(request.layer.experts), per_expert), request.images)
        used = np.flatnonzero(request.layer.index[expert] >= 0)
        rows = self.compute_rows(scope, inputs[used], expert[used], used)
        outputs = np.zeros_like(inputs)
        outputs[used] = rows.output
        y = np.einsum("nts,nsc->ntc", routing.combine, outputs.reshape(request.images, slots, -1))
        return y.reshape(x.shape), rows

    # --- all ----------------------------------------------------------------------------------------------------

    def forward(self, images, training=False, noise=None, choices=None):
        """Normalised images [N, H, W, C] -> (logits [members N, classes], records)."""
        x = self.stem(images, training)
        grid = None if self.config["stem"]["kind"] == "flatten" else self.grid(images)
        records, tiled = [], False
        for block in range(self.config["blocks"]):
            mixture = self.checkpoint.kind(block) != "dense"
            if mixture and not tiled:
                x = np.concatenate([x] * self.config["moe"]["members"])
                tiled = True
            if self.config["mixing"] != "none":
                scope = f"blocks.{block}.mixing"
                x = x + self.mixing(scope, self.norm(f"{scope}.norm", x, training), grid)
            scope = f"blocks.{block}.{'moe' if mixture else 'ffn'}"
            normal = self.norm(f"{scope}.norm", x, training)
            if not mixture:
                x = x + self.dense(scope, normal)
                continue
            record = self.mixture(scope, normal.reshape(-1, x.shape[-1]), len(x), training,
                                  None if noise is None else noise[scope], None if choices is None else choices[scope])
            records.append(record)
            x = x + record.output.reshape(x.shape)
        pooled = self.norm("norm", x.mean(1), training)
        return pooled @ self.p["head.weight"].T + self.p["head.bias"], records

    def members(self):
        return self.config["moe"]["members"] if self.checkpoint.mixtures() else 1

    def predict(self, images, batch=None, choices=None):
        """(logits of the ensemble [N, classes], records of each batch). Of an E3 the logarithm of the mean of its
        members' probabilities (arXiv 2110.03360)."""
        batch = batch or len(images)
        parts, records = [], []
        for first in range(0, len(images), batch):
            some = None
            if choices is not None:
                some = {scope: c[first : first + batch] for scope, c in choices.items()}
                some = {scope: c.transpose(1, 0, 2, 3).reshape(-1, c.shape[3]) for scope, c in some.items()}
            logits, seen = self.forward(images[first : first + batch], choices=some)
            parts.append(ensemble(logits, self.members()))
            records.append(seen)
        return np.concatenate(parts), records


def ensemble(logits, members):
    if members == 1:
        return logits
    log_p = logits - log_sum_exp(logits)[:, None]
    return log_sum_exp(log_p.reshape(members, -1, logits.shape[1]), axis=0) - np.log(members)
