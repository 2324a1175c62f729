"""Who decides which expert sees which token (methods.md, sections 0, 1.4 and 1.5; the papers each policy is of).

A decision is a Routing: a list of slots (token, expert, gate), in the order of the tokens and for each token the best
first, with what became of each."""

import math
from dataclasses import dataclass, field

import numpy as np

from .numerics import sigmoid, softmax, top_k

ZERO, MASKED = -1, -2
EVALUATION_IMAGES = 128  # of a group outside of training where the settings say none


@dataclass
class Routing:
    token: np.ndarray
    expert: np.ndarray  # logical
    gate: np.ndarray
    served: np.ndarray  # within the capacity, not skipped, and the expert has weights
    logits: np.ndarray = None  # [T, experts], -inf outside the member's experts and of masked ones
    noisy: np.ndarray = None
    scores: np.ndarray = None
    choices: np.ndarray = None  # [T, k] of token choice
    skipped: int = 0
    dispatch: np.ndarray = None  # Soft MoE: [images, tokens, slots]
    combine: np.ndarray = None
    margin: float = field(default=math.inf)  # how near the nearest decision was to going the other way


def capacity(tokens, k, factor, experts):
    """V-MoE's: rounded up, then up to a multiple of 4."""
    return 4 * math.ceil(math.ceil(tokens * k * factor / experts - 1e-9) / 4)


def router_logits(x, weights, cosine, temperature):
    z = x @ weights.T
    if cosine:
        z = z / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(weights, axis=1)[None] / temperature
    return z


class Request:
    """What a router looks at: T tokens of `images` images, members one after another."""

    def __init__(self, router, layer, k, original, members, tokens, images, training, bias=None):
        self.router, self.layer, self.k, self.original, self.members = router, layer, k, original, members
        self.tokens, self.images, self.training, self.bias = tokens, images, training, bias
        self.own = layer.experts // members

    def member_of(self, token):
        return token // (self.tokens // self.members)

    def routable(self):
        return self.layer.index != MASKED

    def routable_of(self, token):
        """Experts that the token's member can be sent to."""
        first = self.member_of(token) * self.own
        return int(self.routable()[first : first + self.own].sum())

    def restrict(self, logits):
        """-inf for other members' experts and masked ones."""
        expert_member = np.arange(self.layer.experts) // self.own
        allowed = self.member_of(np.arange(self.tokens))[:, None] == expert_member[None]
        return np.where(allowed & self.routable()[None], logits, -np.inf)

    def groups(self):
        """Ranges of tokens that share a capacity: group_images images of one member, outside of training
        evaluation_group ones."""
        per_image = self.tokens // self.images
        of_member = self.images // self.members
        size = self.router["group_images"] or (of_member if self.training else EVALUATION_IMAGES)
        if not self.training:
            size = self.router.get("evaluation_group") or size
        for member in range(self.members):
            for first in range(0, of_member, size):
                last = min(first + size, of_member)
                begin = (member * of_member + first) * per_image
                yield begin, (member * of_member + last) * per_image


def scores_of(kind, logits):
    """Over the last dimension; -inf scores 0."""
    return softmax(logits) if kind == "softmax" else np.where(np.isneginf(logits), 0.0, sigmoid(logits))


def _margin(values, chosen):
    """The least distance between a chosen and a not chosen value of a row, and between chosen ones."""
    ordered = -np.sort(-values, axis=-1)[:, : chosen + 1]
    gaps = ordered[:, :-1] - ordered[:, 1:]
    gaps = gaps[np.isfinite(gaps)]
    return gaps.min() if gaps.size else math.inf


def skip_choices(gates, beta, renormalise):
    """Dynamic skipping (arXiv 2402.14800, section 3.3; for k > 2 the appendix): the fewest best choices whose rest has
    less than beta times their weight. Returns which are kept and their gates, renormalised if the router's are."""
    kept = np.ones_like(gates, bool)
    margin = math.inf
    for t in range(gates.shape[0]):
        for i in range(1, gates.shape[1]):
            head, tail = gates[t, :i].sum(), gates[t, i:].sum()
            margin = min(margin, abs(tail - beta * head))
            if tail < beta * head:
                kept[t, i:] = False
                break
    left = np.where(kept, gates, 0)
    if renormalise:
        left = left / left.sum(1, keepdims=True)
    return kept, left, margin


def _serve(request, routing, factor, priority):
    """Capacity: first choices before second ones; in a rank by position, or by the score of the token's first choice."""
    k = routing.choices.shape[1]
    first_scores = routing.scores[np.arange(request.tokens), routing.choices[:, 0]]
    for begin, end in request.groups():
        limit = capacity(end - begin, request.k, factor, request.routable_of(begin))
        tokens = np.arange(begin, end)
        if priority:
            best = first_scores[begin:end]  # V-MoE's gates are softmax probabilities, whatever the combination does
            tokens = tokens[np.argsort(-best, kind="stable")]
        count = np.zeros(request.layer.experts, int)
        for rank in range(k):
            last = {}  # of each expert the token it served last, in this rank
            for t in tokens:
                slot = t * k + rank
                expert = routing.expert[slot]
                if not routing.served[slot]:
                    continue
                count[expert] += 1
                if count[expert] <= limit:
                    last[expert] = t
                    continue
                routing.served[slot] = False
                if priority and expert in last:
                    routing.margin = min(routing.margin, first_scores[last[expert]] - first_scores[t])


def _token_gates(router, logits, scores, choices):
    rows = np.arange(len(choices))[:, None]
    if router["score_selected_only"]:
        return scores_of(router["score"], logits[rows, choices])
    gates = scores[rows, choices]
    return gates / gates.sum(1, keepdims=True) if router["renormalise"] else gates


def token_choice(request, logits, noise=None, choices=None):
    router = request.router
    z = request.restrict(logits if noise is None else logits + noise)
    member = slice(None)
    scores = np.zeros_like(z)
    for m in range(request.members):
        rows = request.member_of(np.arange(request.tokens)) == m
        columns = slice(m * request.own, (m + 1) * request.own)
        scores[rows, columns] = scores_of(router["score"], z[rows, columns])
    margin = math.inf
    if choices is None:
        by = z if request.bias is None else np.where(np.isneginf(z), -np.inf, scores + request.bias)
        choices = top_k(by, request.k)
        margin = _margin(by, request.k)
    gates = _token_gates(router, z, scores, choices)
    kept, margin_skip, skipped = np.ones_like(gates, bool), math.inf, 0
    if request.layer.skip > 0 and not request.training:
        kept, gates, margin_skip = skip_choices(gates, request.layer.skip, router["renormalise"])
        skipped = int((~kept).sum())
    k = choices.shape[1]
    routing = Routing(
        np.repeat(np.arange(request.tokens), k), choices.ravel(), gates.ravel(), kept.ravel().copy(),
        request.restrict(logits), z, scores, choices, skipped, margin=min(margin, margin_skip))
    factor = router["capacity"] if request.training else router["evaluation_capacity"]
    if factor > 0:
        _serve(request, routing, factor, router["batch_priority"])
    routing.served &= request.layer.index[routing.expert] >= 0
    return routing


def even(request, logits, noise=None):
    """Slot i of token t goes to expert (t k + i) mod E."""
    choices = (np.arange(request.tokens)[:, None] * request.k + np.arange(request.k)[None]) % request.layer.experts
    return token_choice(request, logits, noise, choices)


def expert_choice(request, logits, noise=None):
    """Zhou et al., arXiv 2202.09368: each expert takes the tokens of a group that score highest for it."""
    router = request.router
    z = request.restrict(logits if noise is None else logits + noise)
    slots = []
    scores = np.zeros_like(z)
    margin = math.inf
    for m in range(request.members):
        rows = request.member_of(np.arange(request.tokens)) == m
        columns = slice(m * request.own, (m + 1) * request.own)
        scores[rows, columns] = scores_of(router["score"], z[rows, columns])
    for begin, end in request.groups():
        size = end - begin
        member = request.member_of(begin)
        own_original = request.original // request.members
        take = min(size, math.ceil(size * request.k / own_original))
        for e in range(member * request.own, (member + 1) * request.own):
            if request.layer.index[e] == MASKED:
                continue
            # Softmax over the chosen tokens alone starts from logits, and so does the choice (methods.md, 1.6).
            column = (z if router["score_selected_only"] else scores)[begin:end, e]
            chosen = begin + top_k(column, take)
            if take < size:
                ordered = -np.sort(-column)
                margin = min(margin, ordered[take - 1] - ordered[take])
            gate = scores[chosen, e]
            if router["score_selected_only"]:
                gate = scores_of(router["score"], z[chosen, e])
            slots += [(t, e, g) for t, g in zip(chosen, gate)]
    slots.sort(key=lambda s: (s[0], s[1]))
    token, expert, gate = (np.array(c) for c in zip(*slots))
    served = request.layer.index[expert] >= 0
    return Routing(token, expert, gate, served, request.restrict(logits), z, scores, margin=margin)


def soft(request, x, logits, slots):
    """Puigcerver et al., arXiv 2308.00951. Logits [T, experts x slots]; dispatch weights sum to 1 over an image's
    tokens, combine weights over all slots."""
    per_image = request.tokens // request.images
    z = logits.reshape(request.images, per_image, -1)
    masked = np.repeat(request.layer.index == MASKED, slots)
    z = np.where(masked[None, None], -np.inf, z)
    dispatch = np.zeros_like(z)
    dispatch[:, :, ~masked] = softmax(z[:, :, ~masked], axis=1)
    return Routing(None, None, None, None, logits, logits, None, dispatch=dispatch, combine=softmax(z, axis=2))


def hashed(request, choices):
    """Roller et al., arXiv 2106.04426: a fixed assignment, given here; every gate is 1."""
    tokens = np.arange(request.tokens)
    return Routing(tokens, choices.ravel(), np.ones(request.tokens), request.layer.index[choices.ravel()] >= 0,
                   choices=choices.reshape(-1, 1))
