# label: medium
"""The scores in plan.json against the reference: every criterion by data and by weights, for models with k > 1, uneven
use, capacity, biases, several layers and other routers."""

import sys

import numpy as np

from espalier_reference import criteria
from espalier_reference.checking import close, run_tests, same
from espalier_reference.models import decided_model
from espalier_reference.program import ProgramFailed, Workshop

R = "model.moe.router."
CALIBRATION_BATCH = 64
FAMILY = [f"S({b},{alpha},{beta})" for b in (0, 1) for alpha in (0, 1, 2) for beta in (0, 1, 2)
          if (b, alpha, beta) != (1, 0, 0)]
BY_PASS = ["frequency", "seer", "ean", "reap", "man", "msan", "gate-weighted-ean", "squared-gate-energy", "novice-mone",
           "max-activation", "importance"]


def calibrated(shop, settings):
    """(name, reference model, scope -> records of the training split in the batches of calibration)"""
    name, checkpoint, reference, (_, batches) = decided_model(shop, settings, split="train", batch=CALIBRATION_BATCH)
    return name, reference, {scope: [b[i] for b in batches] for i, scope in enumerate(checkpoint.mixtures())}


def planned(shop, name, criterion, *arguments, drop=("--drop", 1), data=True):
    """A criterion that looks at no gates refuses to be told their form; its numbers must be right all the same."""
    more = ("--data", "hdf5:data.h5", "--calibration", 100000) if data else ()
    command = ("prune", name, "--criterion", criterion, *drop, *more, "--out", "pruned", "--overwrite")
    try:
        shop.run(*command, *arguments)
    except ProgramFailed as refusal:
        if "--gates would do nothing" not in str(refusal):
            raise
        at = arguments.index("--gates")
        shop.run(*command, *arguments[:at], *arguments[at + 2:])
    return shop.plan("pruned")


def scores_of(layer):
    return [expert["score"] for expert in layer["experts"]]


def check_scores(shop, name, criterion, expected, *arguments, data=True, drop=("--drop", 1)):
    """expected: of each layer. The lowest goes, too."""
    plan = planned(shop, name, criterion, *arguments, data=data, drop=drop)
    same(len(plan["layers"]), len(expected))
    for layer, scores in zip(plan["layers"], expected):
        close(scores_of(layer), scores, 1e-5, f"{criterion} {arguments} of {layer['name']}")
        gone = [e["expert"] for e in layer["experts"] if e["target"] != e["expert"]]
        if drop == ("--drop", 1) and len(set(np.round(scores, 9))) == len(scores):
            same(gone, [int(np.argmin(scores))], f"{criterion}: what {layer['name']} loses")


def check_by_data(settings, names, form="normalised", mode="remove", **more):
    with Workshop() as shop:
        name, reference, records = calibrated(shop, settings)
        for criterion in names:
            expected = [criteria.score(criterion, reference, of, form) for of in records.values()]
            assert all(len(set(np.round(e, 12))) > 1 for e in expected), f"{criterion}: all alike"
            check_scores(shop, name, criterion, expected, "--gates", form, "--mode", mode, **more)
        return records


def test_family():
    """All 17 variants, gates normalised over the token's two (the router's own are not)."""
    check_by_data({R + "renormalise": "false"}, FAMILY + BY_PASS)


def test_gates_as_the_model_has_them():
    check_by_data({R + "renormalise": "false"}, ["seer", "reap", "squared-gate-energy", "novice-mone", "importance"],
                  form="model")


def test_three_choices_of_sigmoids():
    check_by_data({R + "renormalise": "false", R + "score": "sigmoid", "model.moe.top_k": 3}, BY_PASS)


def test_capacity():
    """A choice beyond the capacity has no output; it still is a first choice. Calibration deals the images in an order of
    its own, so that the batch is one group, in which the order of tokens does not count."""
    records = check_by_data({R + "evaluation_capacity": 0.7, R + "capacity": 3.0, R + "renormalise": "false",
                             R + "group_images": 0, R + "batch_priority": "true"}, BY_PASS)
    assert any((~r.routing.served).any() for of in records.values() for r in of)


def test_other_policies():
    """Expert choice and Soft MoE use all experts alike, so that frequency says nothing."""
    check_by_data({R + "policy": "expert_choice", R + "balance_weight": 0, R + "renormalise": "false",
                   R + "group_images": 0}, BY_PASS[1:])
    check_by_data({"model.moe.top_k": None, R + "policy": "soft", R + "balance_weight": 0, "model.stem.patch": 2, R + "slots": 2}, BY_PASS[1:-1])


def test_neuron_experts_and_two_matrices():
    check_by_data({"model.layers": "[mone, dense, moe]"}, BY_PASS)
    check_by_data({"model.feed_forward.activation": "gelu", "model.moe.shared_hidden": 3}, BY_PASS)


def test_e3():
    """Row 12: the lowest of each member goes."""
    check_by_data({"model.moe.members": 2}, BY_PASS, drop=("--drop", 2))


def test_damage():
    for settings in ({}, {R + "renormalise": "false"}, {"model.moe.shared_hidden": 3, R + "score": "sigmoid"},
                     {"model.moe.top_k": 1, R + "renormalise": "false"}):
        check_by_data(settings, ["damage"])
    check_by_data({R + "renormalise": "false"}, ["damage"], mode="zero")  # the next choice takes its place all the same


def test_reconstruction():
    """The subset whose loss is least, and that loss; layer by layer, and on what comes of the layers before."""
    with Workshop() as shop:
        for settings in ({}, {R + "renormalise": "false", "model.moe.shared_hidden": 3}):
            name, reference, records = calibrated(shop, settings)
            plan = planned(shop, name, "reconstruction", drop=("--drop", 3))
            for layer, of in zip(plan["layers"], records.values()):
                losses = criteria.reconstruction_losses(reference, of, 3)
                best = min(losses, key=losses.get)
                close(layer["loss"], losses[best], 1e-5, "loss of reconstruction")
                same([e["expert"] for e in layer["experts"] if e["target"] != e["expert"]], best, "subset")
            check_progressive(shop, name, reference, records)


def check_progressive(shop, name, reference, records):
    plan = planned(shop, name, "reconstruction-progressive", drop=("--drop", 2))
    targets = {scope: [r.output for r in of] for scope, of in records.items()}
    images, _ = shop.images(reference.checkpoint, "train")
    kept = {scope: layer.index.copy() for scope, layer in reference.checkpoint.layers.items()}
    for i, scope in enumerate(records):
        _, batches = reference.predict(images, CALIBRATION_BATCH)
        losses = criteria.reconstruction_losses(reference, [b[i] for b in batches], 2, targets[scope])
        best = min(losses, key=losses.get)
        close(plan["layers"][i]["loss"], losses[best], 1e-5, "loss of progressive reconstruction")
        same([e["expert"] for e in plan["layers"][i]["experts"] if e["target"] != e["expert"]], best, "subset")
        reference.checkpoint.layers[scope].index[list(best)] = -2
    for scope, index in kept.items():
        reference.checkpoint.layers[scope].index = index


def test_by_weights():
    with Workshop() as shop:
        for settings in ({}, {"model.feed_forward.activation": "relu"}):
            name = shop.model(settings)
            checkpoint = shop.checkpoint(name)
            for criterion in ("weight-norm", "aimer"):
                expected = [criteria.by_weights(checkpoint, scope, criterion) for scope in checkpoint.mixtures()]
                check_scores(shop, name, criterion, expected, data=False)


def test_router_change():
    """Signed: a router row that shrank scores below 0."""
    with Workshop() as shop:
        before = shop.model({}, seed=1)
        shop.run("finetune", before, "--data", "hdf5:data.h5", "--out", "after", "--set", "training.epochs=0")
        shop.shake("after", seed=2)
        now, then = shop.checkpoint("after"), shop.checkpoint(before)
        for criterion in ("router-norm-change", "router-norm-change-absolute", "router-difference-norm"):
            expected = [criteria.router_change(now, then, scope, criterion) for scope in now.mixtures()]
            assert criterion != "router-norm-change" or min(map(min, expected)) < 0
            check_scores(shop, "after", criterion, expected, "--reference", before, data=False)


def test_neurons():
    """The plan says which neurons stay: at every ratio those that score highest, of each expert or of the layer."""
    with Workshop() as shop:
        for settings in ({"model.layers": "[mone, dense, moe]", "model.moe.hidden": 9, "model.moe.neurons_kept": 0.3},
                         {"model.feed_forward.activation": "gelu", "model.moe.hidden": 9}):
            name, reference, records = calibrated(shop, settings)
            for criterion in ("neuron-frequency", "neuron-activation", "neuron-contribution", "neuron-weight-norm"):
                if criterion == "neuron-frequency" and "model.layers" not in settings:
                    continue  # an MoE selects all
                for ratio in (0.2, 0.4, 0.6):
                    plan = planned(shop, name, criterion, drop=("--ratio", ratio), data=criterion != "neuron-weight-norm")
                    for layer, of in zip(plan["layers"], records.values()):
                        check_neurons(criterion, layer["neurons"], criteria.neuron_scores(criterion, reference, of))


def stays(text):
    """"0-2 5" -> [0, 1, 2, 5]"""
    ends = [list(map(int, part.split("-"))) for part in text.split()]
    return [n for end in ends for n in range(end[0], end[-1] + 1)]


def check_neurons(criterion, planned_experts, expected):
    for found, scores in zip(planned_experts, expected):
        kept = sorted(np.argsort(-scores, kind="stable")[: found["left"]])
        same(stays(found["stay"]), kept, f"{criterion} of expert {found['stored']}: {scores}")


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
