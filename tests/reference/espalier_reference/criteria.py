"""What each expert is worth by each criterion (methods.md, sections 1.1, 3.1, 4.1 and 4.2; the sources named there)."""

import itertools
import re

import numpy as np

from . import routers
from .forward import expert_weights
from .numerics import ACTIVATIONS, GATES


class Pass:
    """What one calibration pass says of one layer: rows of (expert, gate, output), and all tokens' routing."""

    def __init__(self, records, form):
        self.records = records
        self.experts = records[0].request.layer.experts
        parts = [self._rows(record, form) for record in records]
        self.expert = np.concatenate([p[0] for p in parts])
        self.gate = np.concatenate([p[1] for p in parts])
        self.output = np.concatenate([p[2] for p in parts])
        self.norm = np.linalg.norm(self.output, axis=1)

    @staticmethod
    def _rows(record, form):
        """Only choices that an expert served have an output."""
        routing, rows = record.routing, record.rows
        if routing.combine is not None:  # a slot's gate: its weight summed over the tokens
            return rows.expert, routing.combine.sum(1).ravel()[rows.slot], rows.output
        gate = routing.gate
        if form == "normalised" and routing.choices is not None:
            by_token = gate.reshape(routing.choices.shape)
            gate = (by_token / by_token.sum(1, keepdims=True)).ravel()
        return rows.expert, gate[rows.slot], rows.output

    def of(self, expert):
        chosen = self.expert == expert
        return self.gate[chosen], self.norm[chosen], self.output[chosen]

    def each(self, score):
        return np.array([score(*self.of(e)) for e in range(self.experts)])


FAMILY = {"frequency": (0, 0, 0), "seer": (0, 1, 0), "ean": (0, 0, 1), "reap": (1, 1, 1), "man": (1, 0, 1),
          "msan": (1, 0, 2), "gate-weighted-ean": (0, 1, 1), "squared-gate-energy": (0, 2, 2)}


def family(seen, b, alpha, beta):
    """S(b, alpha, beta) = (1 / N^b) sum g^alpha n^beta; 0 where nothing was routed."""
    return seen.each(lambda g, n, _: (g**alpha * n**beta).sum() / (len(g) ** b) if len(g) else 0.0)


def novice(seen):
    """(mean g) x norm of the outputs' standard deviations, with N - 1."""
    return seen.each(lambda g, _, f: g.mean() * np.linalg.norm(f.std(0, ddof=1)) if len(g) > 1 else 0.0)


def max_activation(seen):
    return seen.each(lambda g, _, f: f.max() if len(g) else 0.0)


def importance(seen):
    """NLLB: share of first choices x exp(their mean score)."""
    first, score = [], []
    for record in seen.records:
        routing = record.routing
        if routing.choices is not None:
            best = routing.choices[:, 0]
        else:  # expert choice: the largest gate, ties to the lower index
            best = np.full(record.request.tokens, -1)
            largest = np.full(record.request.tokens, -np.inf)
            for t, e, g in zip(routing.token, routing.expert, routing.gate):
                if g > largest[t]:
                    best[t], largest[t] = e, g
        tokens = np.flatnonzero(best >= 0)
        first.append(best[tokens])
        score.append(routing.scores[tokens, best[tokens]] if routing.scores is not None else np.ones(len(tokens)))
    total = sum(record.request.tokens for record in seen.records)
    first, score = np.concatenate(first), np.concatenate(score)
    return np.array([(first == e).sum() / total * np.exp(score[first == e].mean()) if (first == e).any() else 0.0
                     for e in range(seen.experts)])


def _without(model, record, dropped):
    """The layer's output on the same input with these experts gone."""
    layer = record.request.layer
    kept = layer.index.copy()
    layer.index = kept.copy()
    layer.index[list(dropped)] = routers.MASKED
    try:
        return model.mixture(record.scope, record.input, record.request.images).output
    finally:
        layer.index = kept


def damage(model, records):
    """Sum over the tokens routed to it of |y - y without it|, the next choice taking its place."""
    experts = records[0].request.layer.experts
    total = np.zeros(experts)
    for record in records:
        for e in range(experts):
            tokens = np.unique(record.routing.token[(record.routing.expert == e) & record.routing.served])
            change = np.linalg.norm(record.output - _without(model, record, [e]), axis=1)
            total[e] += change[tokens].sum()
    return total


def reconstruction_losses(model, records, drop, targets=None):
    """Dropped subset -> |Z - Z'|, one Frobenius norm over all tokens; in lexicographic order."""
    experts = records[0].request.layer.experts
    targets = targets if targets is not None else [record.output for record in records]
    return {subset: np.sqrt(sum((np.linalg.norm(target - _without(model, record, subset)) ** 2)
                                for record, target in zip(records, targets)))
            for subset in itertools.combinations(range(experts), drop)}


def router_change(checkpoint, reference, scope, kind):
    """The signed difference of norms, its magnitude, or the norm of the difference, of the router's rows."""
    experts = checkpoint.layers[scope].experts
    now = checkpoint.parameters[f"{scope}.router"].reshape(experts, -1)
    before = reference.parameters[f"{scope}.router"].reshape(experts, -1)
    if kind == "router-difference-norm":
        return np.linalg.norm(now - before, axis=1)
    signed = np.linalg.norm(now, axis=1) - np.linalg.norm(before, axis=1)
    return np.abs(signed) if kind == "router-norm-change-absolute" else signed


def matrices_of(weights):
    return np.concatenate([weights[name].ravel() for name in ("gate", "up", "down") if weights[name] is not None])


def by_weights(checkpoint, scope, kind):
    """weight-norm: L2 norm of an expert's matrices. aimer: mean magnitude over root mean square."""
    scores = []
    for stored in checkpoint.layers[scope].index:
        w = matrices_of(expert_weights(checkpoint, scope, stored))
        if kind == "aimer":
            scores.append(np.abs(w).mean() / np.sqrt((w**2).mean()))
        else:
            scores.append(np.linalg.norm(w))
    return np.array(scores)


def score(name, model, records, form="normalised"):
    """The scores of one layer by a criterion that looks at data."""
    if name == "damage":
        return damage(model, records)
    seen = Pass(records, form)
    numbers = re.fullmatch(r"S\((\d),(\d),(\d)\)", name)
    if numbers:
        return family(seen, *map(int, numbers.groups()))
    if name in FAMILY:
        return family(seen, *FAMILY[name])
    return {"novice-mone": novice, "max-activation": max_activation, "importance": importance}[name](seen)


# --- neurons ----------------------------------------------------------------------------------------------------


def neuron_scores(name, model, records):
    """Of each stored expert [neurons]: the share of its rows that select a neuron, mean |h| before any selection, mean
    |h| after it times the norm of its row of down, or the norm of its weights."""
    checkpoint, scope = model.checkpoint, records[0].scope
    layer = checkpoint.layers[scope]
    result = []
    for s in range(layer.stored):
        w = expert_weights(checkpoint, scope, s)
        if name == "neuron-weight-norm":
            parts = [w[n] for n in ("gate", "up", "down") if w[n] is not None]
            result.append(np.sqrt(sum((p**2).sum(1) for p in parts)))
            continue
        chosen = [(r.rows.hidden[i], r.rows.mask[i]) for r in records for i in np.flatnonzero(r.rows.stored == s)]
        hidden = np.array([c[0] for c in chosen])
        mask = np.array([c[1] for c in chosen])
        if name == "neuron-frequency":
            result.append(mask.mean(0))
        elif name == "neuron-activation":
            result.append(np.abs(hidden).mean(0))
        else:
            result.append(np.abs(np.where(mask, hidden, 0)).mean(0) * np.linalg.norm(w["down"], axis=1))
    return result



def gates_of(checkpoint, pre):
    """G of pre-activations [rows, neurons]: the activation of the gate."""
    return GATES[ACTIVATIONS[checkpoint.config["feed_forward"]["activation"]][1]](pre)
