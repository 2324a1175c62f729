# label: medium
"""Plans and weights of `merge` against the reference: every alignment with two and three matrices, similarity, budget and
average; what the merged model predicts."""

import sys

import numpy as np

from espalier_reference import merging
from espalier_reference.checkpoint import Checkpoint
from espalier_reference.checking import close, run_tests, same
from espalier_reference.forward import Model, expert_weights
from espalier_reference.models import decided_model
from espalier_reference.program import TRAIN, Workshop

R = "model.moe.router."
GROUPS = 3
ONE_STEP = {"optimizer.kind": "sgd", "optimizer.momentum": 0, "optimizer.learning_rate": 1, "optimizer.weight_decay": 0,
            "optimizer.clip_norm": 0, "optimizer.schedule.kind": "constant", "optimizer.schedule.warmup": 0,
            "training.epochs": 1, "training.batch": TRAIN, "model.moe.router.balance_weight": 0}


class Merge:
    """A model, its calibration pass, and what `merge` made of it."""

    def __init__(self, shop, settings):
        self.shop = shop
        self.name, self.checkpoint, self.model, (_, batches) = decided_model(shop, settings, split="train", batch=64)
        self.scopes = self.checkpoint.mixtures()
        self.records = {scope: [b[i] for b in batches] for i, scope in enumerate(self.scopes)}
        self.frequency = [merging.frequencies(self.records[scope]) for scope in self.scopes]

    def run(self, *arguments):
        self.output = self.shop.json("merge", self.name, "--data", "hdf5:data.h5", "--calibration", 100000, "--out",
                                     "merged", "--overwrite", *arguments)
        self.plan = self.shop.plan("merged")
        self.merged = self.shop.checkpoint("merged")

    def gradient(self):
        """The gradient of the task's loss on all training images, from a step of the trainer (test_losses.py holds it)."""
        self.shop.run("finetune", self.name, "--data", "hdf5:data.h5", "--out", "stepped", "--overwrite",
                      *[word for key, value in ONE_STEP.items() for word in ("--set", f"{key}={value}")])
        result, after = Checkpoint(self.checkpoint.path), self.shop.checkpoint("stepped")
        for name in result.parameters:
            result.parameters[name] = result.parameters[name] - after.parameters[name]
        return result

    def check(self, align="weights", average="frequency", similarity="router-logits", budget="global"):
        self.run("--method", "zipit" if align == "zip" else "m-smoe", "--align", align, "--average", average,
                 "--similarity", similarity, "--budget", budget, "--groups", GROUPS)
        choose = merging.dominant_globally if budget == "global" else merging.dominant_uniformly
        dominant = choose(self.frequency, GROUPS)
        gradient = self.gradient() if "gradients" == similarity or average == "fisher" else None
        for i, scope in enumerate(self.scopes):
            places = merging.align(self.checkpoint, scope, self.records[scope], "none" if align == "zip" else align)
            vectors = merging.expert_vectors(similarity, self.checkpoint, scope, self.records[scope], places, gradient)
            target = merging.join(dominant[i], merging.similarities(vectors))
            self._check_layer(i, scope, target, places, align, self._importance(i, scope, average, gradient))
        self.check_prediction()

    def _importance(self, i, scope, average, gradient):
        if average == "frequency":
            return self.frequency[i]
        if average == "uniform":
            return np.ones_like(self.frequency[i])
        layer = self.checkpoint.layers[scope]
        return np.array([(merging.neurons_of(expert_weights(gradient, scope, s)) ** 2).sum() for s in layer.index])

    def _check_layer(self, i, scope, target, places, align, importance):
        experts = self.plan["layers"][i]["experts"]
        close([e["score"] for e in experts], self.frequency[i], 1e-6, "frequencies")
        same([e["target"] for e in experts], target, f"groups of {scope}")
        for dominant in np.unique(target):
            group = np.flatnonzero(target == dominant)
            share = importance[group] / importance[group].sum()
            close([experts[e]["weight"] for e in group], share, 1e-4, f"weights of group {group}")
            here = merging.zip_places(self.checkpoint, scope, self.records[scope], group) if align == "zip" else places[group]
            expected = merging.average(self.checkpoint, scope, group, share, here)
            found = expert_weights(self.merged, scope, self.merged.layers[scope].index[dominant])
            for part, values in expected.items():
                close(found[part], values, 1e-4, f"{part} of the merged expert {group}")
            same(self.merged.layers[scope].index[group], [self.merged.layers[scope].index[dominant]] * len(group))
        same(self.merged.parameters[f"{scope}.router"], self.checkpoint.parameters[f"{scope}.router"], "the router")

    def check_prediction(self):
        images, _ = self.shop.images(self.merged)
        close(self.shop.logits("merged"), Model(self.merged).predict(images)[0], 1e-5, "logits of the merged model")


def check_all(settings, choices):
    with Workshop() as shop:
        merge = Merge(shop, settings)
        for choice in choices:
            merge.check(**choice)


def test_alignments():
    """Rows 37 and 40: three matrices and two, by weights and by activations, and none; frequency weights."""
    for activation in ("swiglu", "gelu"):
        check_all({"model.feed_forward.activation": activation, R + "renormalise": "false"},
                  [{"align": a} for a in ("weights", "activations", "none")])


def test_averages():
    check_all({R + "renormalise": "false"}, [{"average": a} for a in ("frequency", "uniform", "fisher")])


def test_similarities():
    """Row 38."""
    many = {"model.moe.top_k": 3, "model.moe.experts": 10, "model.layers": "[moe]", "model.moe.hidden": 4}
    check_all(many, [{"similarity": s} for s in
              ("router-logits", "router-weights", "expert-weights", "weights-features", "gradients", "mean-features",
               "mean-absolute-features")])


def test_budgets():
    """Row 39: dominant experts globally, whose layers keep different numbers, or as many in each."""
    with Workshop() as shop:
        merge = Merge(shop, {"model.blocks": 4, "model.layers": "[moe]"})
        for budget in ("global", "layer"):
            merge.check(budget=budget)
        sizes = [len(d) for d in merging.dominant_globally(merge.frequency, GROUPS)]
        assert len(set(sizes)) > 1, f"all layers keep as many: {sizes}"


def test_zip():
    check_all({}, [{"align": "zip", "average": "uniform"}, {"align": "zip", "average": "frequency"}])


def test_e3():
    """Members keep to themselves."""
    with Workshop() as shop:
        merge = Merge(shop, {"model.moe.members": 2})
        merge.run("--method", "m-smoe", "--budget", "layer", "--groups", 4)
        merge.check_prediction()
        for layer in merge.plan["layers"]:
            assert all(e["expert"] // 3 == e["target"] // 3 for e in layer["experts"])


def test_stable_ranks():
    """Row 41: sums of squares of singular values, before and after, a mean over the experts' matrices."""
    with Workshop() as shop:
        merge = Merge(shop, {})
        merge.run("--groups", GROUPS, "--ranks")
        for layer, scope in zip(merge.output["layers"], merge.scopes):
            for checkpoint, key in ((merge.checkpoint, "stable_rank_before"), (merge.merged, "stable_rank")):
                ranks = [merging.stable_rank(w[part]) for w in
                         (expert_weights(checkpoint, scope, s) for s in range(checkpoint.layers[scope].stored))
                         for part in merging.PARTS]
                close(layer[key], np.mean(ranks), 1e-5, key)


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
