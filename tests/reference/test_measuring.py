# label: medium
"""What `measure`, `overlap` and `evaluate` say: counts of routing, traces, skipped choices of a pruned model, overlaps."""

import itertools
import sys

import numpy as np

from espalier_reference import criteria
from espalier_reference.checking import close, run_tests, same
from espalier_reference.forward import Model
from espalier_reference.losses import cross_entropy
from espalier_reference.models import decided_model
from espalier_reference.program import Workshop

R = "model.moe.router."


def entropy(p):
    p = p[p > 0]
    return -(p * np.log(p)).sum()


def test_prune_then_skip():
    """Row 34: what is served and skipped is what the reference serves and skips, with zero experts and a capacity."""
    with Workshop() as shop:
        for settings in ({}, {R + "renormalise": "false", "model.moe.top_k": 3},
                         {R + "evaluation_capacity": 0.9, R + "capacity": 2.0}):
            name = decided_model(shop, settings)[0]
            shop.run("prune", name, "--criterion", "weight-norm", "--drop", 2, "--mode", "zero", "--out", "pruned",
                     "--overwrite")
            shop.run("skip", "pruned", "--beta", 0.5, "--out", "skipping", "--overwrite")
            checkpoint = shop.checkpoint("skipping")
            images, labels = shop.images(checkpoint)
            prediction, (records,) = Model(checkpoint).predict(images)
            found = shop.json("measure", "skipping", "--data", "hdf5:data.h5", "--out", "measured")
            close(found["loss"], cross_entropy(prediction, labels), 1e-5, "loss")
            same(round(found["accuracy"] * len(labels)), (prediction.argmax(1) == labels).sum(), "accuracy")
            for layer, record in zip(found["layers"], records):
                routing, request = record.routing, record.request
                same([layer["tokens"], layer["slots"], layer["skipped"]],
                     [request.tokens, routing.gate.size, routing.skipped], f"counts of {settings}")
                same(layer["served"], routing.served.sum(), "calls of experts")
                assert 0 < routing.skipped < 0.67 * routing.gate.size
                check_shares(layer, routing, request)


def check_shares(layer, routing, request):
    share = np.bincount(routing.expert, minlength=request.layer.experts) / routing.expert.size
    close(layer["entropy"], entropy(share), 1e-6, "entropy of the shares")
    close(layer["imbalance"], share.max() / share.mean(), 1e-6, "imbalance")
    close(layer["token_entropy"], np.mean([entropy(p) for p in routing.scores]), 1e-5, "entropy of a token's scores")


def test_traces():
    """Choices and gates, image by image, before any capacity; of each member."""
    with Workshop() as shop:
        for settings in ({}, {"model.moe.members": 2}, {R + "evaluation_capacity": 0.8, R + "capacity": 2.0,
                                                       R + "renormalise": "false"}):
            name, checkpoint, _, (prediction, (records,)) = decided_model(shop, settings)
            shop.run("measure", name, "--data", "hdf5:data.h5", "--out", "measured", "--trace", "trace.h5")
            traced = shop.trace("trace.h5")
            for record in records:
                choices, gates = next(v for k, v in traced.items() if k.split(".")[1] == record.scope.split(".")[1])
                members, k = record.request.members, record.request.k
                shape = (members, len(prediction), -1, k)
                same(choices, record.routing.choices.reshape(shape).transpose(1, 0, 2, 3), "choices")
                close(gates, record.routing.gate.reshape(shape).transpose(1, 0, 2, 3), 1e-5, "gates")
            shop.run("evaluate", name, "--data", "hdf5:data.h5", "--replay", "trace.h5")
            close(shop.logits(name, "--replay", "trace.h5"), prediction, 1e-5, f"replayed {checkpoint.path}")


def test_overlap():
    """Row 27: the share that two data sets both put among the lowest, over pairs of sets and layers."""
    with Workshop() as shop:
        name, checkpoint, reference, _ = decided_model(shop, {"model.moe.experts": 12})
        sets = ["data.h5", shop.data(4, 8, 11, "second.h5"), shop.data(4, 8, 12, "third.h5")]
        wanted = {c: [] for c in ("reap", "frequency", "man", "squared-gate-energy")}
        for data in sets:
            _, batches = reference.predict(shop.images(checkpoint, "train", data)[0], 64)
            for criterion, lowest in wanted.items():
                lowest.append([set(np.argsort(criteria.score(criterion, reference, [b[i] for b in batches]),
                                              kind="stable")[:5]) for i in range(len(batches[0]))])
        found = shop.json("overlap", name, *[w for data in sets for w in ("--data", f"hdf5:{data}")], "--drop", 5,
                          *[w for c in wanted for w in ("--criterion", c)])["criteria"]
        for criterion in found:
            if criterion["criterion"] not in wanted:
                continue
            shares = [len(a & b) / 5 for first, second in itertools.combinations(wanted[criterion["criterion"]], 2)
                      for a, b in zip(first, second)]
            close(criterion["overlap"], np.mean(shares), 1e-9, f"overlap of {criterion['criterion']}")
        assert len(found) >= len(wanted) and any(c["overlap"] < 1 for c in found)


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
