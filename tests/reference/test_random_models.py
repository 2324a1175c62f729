# label: long
"""Two hundred random configs, by a seed: logits, losses and the scores of a random criterion, to 1e-5."""

import random
import sys

from espalier_reference import criteria
from espalier_reference.checking import close, run_tests
from espalier_reference.losses import cross_entropy
from espalier_reference.models import decided_model
from espalier_reference.program import Workshop

COUNT, SEED = 200, 20261129
R = "model.moe.router."
CRITERIA = ["frequency", "seer", "ean", "reap", "man", "msan", "gate-weighted-ean", "squared-gate-energy", "novice-mone",
            "max-activation"]


def random_router(draw):
    """Settings of a router that the program takes."""
    policy = draw.choice(["token_choice"] * 4 + ["expert_choice", "soft"])
    settings = {R + "policy": policy, R + "balance_weight": 0, R + "cosine": draw.choice(["false", "true"])}
    if settings[R + "cosine"] == "true":
        settings[R + "temperature"] = draw.choice([0.2, 0.5])
    if policy == "soft":
        return dict(settings, **{"model.moe.top_k": None, R + "slots": draw.choice([1, 2])})
    settings.update({R + "score": draw.choice(["softmax", "sigmoid"]), "model.moe.top_k": draw.choice([1, 2, 3]),
                     R + "score_selected_only": "false", R + "renormalise": "false"})
    if policy == "expert_choice":
        return dict(settings, **{R + "group_images": 0})
    if settings["model.moe.top_k"] > 1:
        settings[draw.choice([R + "score_selected_only", R + "renormalise"])] = draw.choice(["false", "true"])
    if draw.random() < 0.3:
        settings.update({R + "evaluation_capacity": draw.choice([0.6, 1.0]), R + "capacity": 2.0, R + "group_images": 0,
                         R + "batch_priority": "true"})
    if draw.random() < 0.3:
        settings[R + "bias_rate"] = 0.01
    return settings


def random_settings(draw):
    settings = random_router(draw)
    members = 1 if settings[R + "policy"] == "soft" else draw.choice([1, 1, 1, 2])
    settings.update({
        "model.moe.members": members, "model.moe.experts": members * draw.choice([4, 5, 7]), "model.moe.hidden":
        draw.choice([3, 6, 9]), "model.moe.shared_hidden": draw.choice([0, 0, 4]), "model.width": draw.choice([8, 12, 20]),
        "model.blocks": draw.choice([2, 3, 4]), "model.layers": draw.choice(["[moe]", "[dense, moe]", "[mone, dense]",
                                                                           "[mone, moe]"]),
        "model.mixing": draw.choice(["attention", "convolution", "none"]), "model.kernel": 3,
        "model.norm": draw.choice(["layer", "rms", "batch"]), "model.feed_forward.bias": draw.choice(["true", "false"]),
        "model.feed_forward.activation": draw.choice(["relu", "gelu", "squared_relu", "swiglu", "glu", "geglu", "reglu"]),
        "model.stem.patch": draw.choice([2, 4])})
    return settings


def check_model(shop, settings, draw):
    name, checkpoint, reference, (prediction, _) = decided_model(shop, settings)
    close(shop.logits(name), prediction, 1e-5, f"logits of {settings}")
    labels = shop.images(checkpoint)[1]
    found = shop.json("evaluate", name, "--data", "hdf5:data.h5")["loss"]
    close(found, cross_entropy(prediction, labels), 1e-5, f"loss of {settings}")
    criterion = draw.choice(CRITERIA)
    _, batches = reference.predict(shop.images(checkpoint, "train")[0], 64)
    if min(r.routing.margin for r in batches[0]) < 1e-5:
        return
    shop.run("prune", name, "--criterion", criterion, "--drop", settings["model.moe.members"], "--data", "hdf5:data.h5",
             "--calibration", 100000, "--out", "pruned", "--overwrite", "--mode", "zero")
    for i, layer in enumerate(shop.plan("pruned")["layers"]):
        expected = criteria.score(criterion, reference, [b[i] for b in batches], "normalised")
        close([e["score"] for e in layer["experts"]], expected, 1e-5, f"{criterion} of {settings}")


def test_random_models():
    draw = random.Random(SEED)
    with Workshop() as shop:
        for number in range(COUNT):
            settings = random_settings(draw)
            try:
                check_model(shop, settings, draw)
            except Exception as error:
                raise AssertionError(f"config {number}: {error}") from error


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
