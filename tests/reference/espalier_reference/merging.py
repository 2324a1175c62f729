"""Merging experts (methods.md, sections 2.2 to 2.5): alignment, similarity, dominant experts, groups, averages."""

import itertools

import numpy as np

from .forward import expert_weights, run_expert

PARTS = ("gate", "up", "down")


def neurons_of(weights):
    """[neurons, all their weights]"""
    return np.concatenate([weights[p] for p in PARTS if weights[p] is not None], axis=1)


def best_permutation(gain):
    """place[n]: the partner of neuron n, so that the sum of gain[place[n], n] is largest; by trying all."""
    size = len(gain)
    return np.array(max(itertools.permutations(range(size)), key=lambda p: sum(gain[p[n], n] for n in range(size))))


def weight_gains(reference, other):
    """The first matrices' products and down's."""
    return neurons_of(reference) @ neurons_of(other).T


def hidden_of(checkpoint, scope, expert, x):
    layer = checkpoint.layers[scope]
    weights = expert_weights(checkpoint, scope, layer.index[expert])
    return run_expert(weights, x, checkpoint.config["feed_forward"]["activation"])[1]


def tokens_of(records, *experts):
    """Inputs of the tokens that chose any of them."""
    parts = []
    for record in records:
        chosen = np.isin(record.routing.expert, experts) & record.routing.served
        parts.append(record.input[np.unique(record.routing.token[chosen])])
    return np.concatenate(parts)


def correlation(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0))[:, None] * np.sqrt((b**2).sum(0))[None]
    return np.divide(a.T @ b, scale, out=np.zeros_like(scale), where=scale > 0)


def activation_gains(checkpoint, scope, records, first, second):
    x = tokens_of(records, first, second)
    return correlation(hidden_of(checkpoint, scope, first, x), hidden_of(checkpoint, scope, second, x))


def align(checkpoint, scope, records, how):
    """[experts, neurons] places; all to the first expert (of their member)."""
    layer, members = checkpoint.layers[scope], checkpoint.config["moe"]["members"]
    own = layer.experts // members
    places = []
    for e in range(layer.experts):
        first = e // own * own
        if how == "none" or e == first:
            places.append(np.arange(checkpoint.config["moe"]["hidden"]))
        elif how == "weights":
            places.append(best_permutation(weight_gains(expert_weights(checkpoint, scope, layer.index[first]),
                                                        expert_weights(checkpoint, scope, layer.index[e]))))
        else:
            places.append(best_permutation(activation_gains(checkpoint, scope, records, first, e)))
    return np.array(places)


def zip_places(checkpoint, scope, records, group):
    """Clusters of the group's neurons by average linkage of their correlations, over the tokens routed to any of the
    group, until one expert's number is left."""
    size = checkpoint.config["moe"]["hidden"]
    x = tokens_of(records, *group)
    hidden = np.concatenate([hidden_of(checkpoint, scope, e, x) for e in group], axis=1)
    likeness = correlation(hidden, hidden)
    clusters = [[n] for n in range(len(likeness))]
    while len(clusters) > size:
        pairs = itertools.combinations(range(len(clusters)), 2)
        i, j = max(pairs, key=lambda p: likeness[np.ix_(clusters[p[0]], clusters[p[1]])].mean())
        clusters[i] += clusters.pop(j)
    clusters.sort(key=min)
    place = np.empty(len(likeness), int)
    for number, members in enumerate(clusters):
        place[members] = number
    return place.reshape(len(group), size)


# --- which experts go together ------------------------------------------------------------------------------------


def frequencies(records):
    """How often each is chosen, before any capacity; sums to 1."""
    experts = records[0].request.layer.experts
    count = sum(np.bincount(record.routing.expert, minlength=experts) for record in records)
    return count / count.sum()


def _cosine(a, b):
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return (a @ b / size + 1) / 2 if size > 0 else 0.5


def _placed(weights, place):
    """The expert as one vector, each neuron at its place."""
    order = np.argsort(place)
    return np.concatenate([weights[p][order].ravel() for p in PARTS if weights[p] is not None])


def expert_vectors(kind, checkpoint, scope, records, places, gradient=None):
    layer, vectors = checkpoint.layers[scope], []
    for e in range(layer.experts):
        x = tokens_of(records, e)
        if kind == "router-logits":
            vectors.append(np.concatenate([r.routing.logits[:, e] for r in records]))
        elif kind == "router-weights":
            vectors.append(checkpoint.parameters[f"{scope}.router"][e])
        elif kind == "mean-features":
            vectors.append(x.mean(0))
        elif kind == "mean-absolute-features":
            vectors.append(np.abs(x).mean(0))
        else:
            weights = expert_weights(gradient if kind == "gradients" else checkpoint, scope, layer.index[e])
            if kind == "weights-features":
                inputs = np.sqrt((x**2).sum(0))
                hidden = np.sqrt((hidden_of(checkpoint, scope, e, x) ** 2).sum(0))
                weights = dict(weights, up=weights["up"] * inputs, down=weights["down"] * hidden[:, None],
                               gate=None if weights["gate"] is None else weights["gate"] * inputs)
            vectors.append(_placed(weights, places[e]))
    return vectors


def similarities(vectors):
    return np.array([[_cosine(a, b) for b in vectors] for a in vectors])


def dominant_globally(by_layer, groups, excluded=()):
    """methods.md 2.4: groups of each layer, those with a frequency strictly above the threshold."""
    changed = []
    for i, frequency in enumerate(by_layer):
        f = np.ones_like(frequency) if i in excluded else frequency.copy()
        f[np.argmax(f)] = 1
        changed.append(f)
    keep = sum(len(f) if i in excluded else groups for i, f in enumerate(by_layer))
    threshold = -np.sort(-np.concatenate(changed))[keep]
    return [np.sort(np.argsort(-f, kind="stable")[: (f > threshold).sum()]) for f in changed]


def dominant_uniformly(by_layer, groups):
    return [np.sort(np.argsort(-f, kind="stable")[:groups]) for f in by_layer]


def join(dominant, similarity):
    """Of each expert the dominant one it is most like."""
    target = np.arange(len(similarity))
    for e in target:
        if e not in dominant:
            target[e] = max(dominant, key=lambda d: (similarity[e, d], -d))
    return target


# --- averages -----------------------------------------------------------------------------------------------------


def average(checkpoint, scope, group, share, places):
    """The group's one expert. Rows of gate and up that meet at a place are averaged, those of down are added up; with
    permutations both are the plain weighted average."""
    layer = checkpoint.layers[scope]
    experts = [expert_weights(checkpoint, scope, layer.index[e]) for e in group]
    result = {}
    total = np.zeros(len(places[0]))
    for w, place in zip(share, places):
        np.add.at(total, place, w)
    for part in experts[0]:
        if experts[0][part] is None:
            continue
        if part == "down_bias":
            result[part] = sum(w * e[part] for w, e in zip(share, experts))
            continue
        rows = np.zeros_like(experts[0][part])
        for w, e, place in zip(share, experts, places):
            np.add.at(rows, place, w * e[part])
        result[part] = rows if part == "down" else (rows.T / total).T
    return result


def stable_rank(matrix):
    """sum sigma^2 / max sigma^2"""
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    return squares.sum() / squares.max()
