"""What training minimises (methods.md, sections 1.4, 1.5, 2.7 and 5.2; Switch eq. 4, ST-MoE eq. 5, V-MoE appendix A)."""

import numpy as np

from .criteria import gates_of
from .numerics import log_sum_exp, normal_cdf, softmax


def cross_entropy(logits, labels, smoothing=0.0):
    """Of an E3 each member's logits with the repeated label."""
    labels = np.tile(labels, len(logits) // len(labels))
    classes = logits.shape[1]
    target = np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
    return (target * (log_sum_exp(logits)[:, None] - logits)).sum(1).mean()


def _members(record):
    """(tokens, experts that can be routed to) of each member."""
    request = record.request
    for m in range(request.members):
        tokens = np.flatnonzero(request.member_of(np.arange(request.tokens)) == m)
        experts = np.arange(m * request.own, (m + 1) * request.own)
        yield tokens, experts[request.routable()[experts]]


def balance(record):
    """E sum_i F_i P_i. F: of the slots, or of the first choices; P: of all scores, or of the selected ones."""
    request, routing = record.request, record.routing
    values = []
    for tokens, experts in _members(record):
        choices = routing.choices[tokens]
        counted = choices[:, :1] if request.router["balance"] == "first_choice" else choices
        f = np.array([(counted == e).sum() for e in experts]) / counted.size
        scores = routing.scores[tokens].copy()
        if request.router["balance_scores"] == "selected":
            chosen = np.zeros_like(scores, bool)
            np.put_along_axis(chosen, choices, True, axis=1)
            scores = np.where(chosen, scores, 0)
        values.append(len(experts) * (f * scores[:, experts].mean(0)).sum())
    return np.mean(values)


def _spread(values):
    """(standard deviation / mean)^2"""
    return values.var() / values.mean() ** 2


def _groups(record, tokens):
    return [(begin, end) for begin, end in record.request.groups() if tokens[0] <= begin <= tokens[-1]]


def importance(record):
    values = []
    for tokens, experts in _members(record):
        p = softmax(record.routing.logits[tokens][:, experts])
        values.append(np.mean([_spread(p[begin - tokens[0] : end - tokens[0]].sum(0))
                               for begin, end in _groups(record, tokens)]))
    return np.mean(values)


def load(record):
    """1 - Phi((threshold - z) / deviation), the threshold being the k-th largest noisy logit."""
    request = record.request
    values = []
    for tokens, experts in _members(record):
        deviation = request.router["noise"] / request.routable_of(tokens[0])
        noisy, clean = record.routing.noisy[tokens][:, experts], record.routing.logits[tokens][:, experts]
        threshold = -np.sort(-noisy, axis=1)[:, request.k - 1 : request.k]
        p = 1 - normal_cdf((threshold - clean) / deviation)
        values.append(np.mean([_spread(p[begin - tokens[0] : end - tokens[0]].mean(0))
                               for begin, end in _groups(record, tokens)]))
    return np.mean(values)


def z(record):
    return np.mean([(log_sum_exp(record.routing.logits[t][:, e]) ** 2).mean() for t, e in _members(record)])


def entropy(record):
    values = []
    for tokens, experts in _members(record):
        p = softmax(record.routing.logits[tokens][:, experts])
        values.append(-(p * np.log(p)).sum(1).mean())
    return np.mean(values)


def neuron_balance(checkpoint, record, kept):
    """Mean over the experts with tokens of (f / K) sum_j F_j P_j."""
    kind = checkpoint.config["moe"]["neuron_balance"]
    values = []
    for s in range(record.request.layer.stored):
        rows = np.flatnonzero(record.rows.stored == s)
        if not len(rows):
            continue
        mask = np.array([record.rows.mask[r] for r in rows])
        gate = np.abs(gates_of(checkpoint, np.array([record.rows.pre[r] for r in rows])))
        q = gate / gate.sum(1, keepdims=True) if kind == "norm" else np.where(mask, gate, 0)
        values.append(mask.shape[1] / kept * (mask.mean(0) * q.mean(0)).sum())
    return np.mean(values)


def distillation(student, teacher, temperature):
    """KL(teacher || student) at a temperature, the mean over the batch."""
    p = softmax(teacher / temperature)
    q = softmax(student / temperature)
    return (p * (np.log(p) - np.log(q))).sum(1).mean()


PER_LAYER = {"balance": balance, "importance": importance, "load": load, "z": z, "entropy": entropy}


def auxiliary(model, records):
    """name -> (raw, weighted), summed over the layers; those of weight 0 are not computed."""
    router, moe = model.config["moe"]["router"], model.config["moe"]
    result = {}
    for name, loss in PER_LAYER.items():
        if router[f"{name}_weight"]:
            raw = sum(loss(record) for record in records)
            result[name] = (raw, raw * router[f"{name}_weight"])
    if moe["neuron_balance_weight"]:
        values = [neuron_balance(model.checkpoint, r, model.neurons_kept(model.checkpoint.block_of(r.scope)))
                  for r in records if model.neurons_kept(model.checkpoint.block_of(r.scope)) is not None]
        result["neuron_balance"] = (np.sum(values), moe["neuron_balance_weight"] * np.mean(values))
    return result
