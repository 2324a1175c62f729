# label: medium
"""Logits of `evaluate` against the reference, for every router policy with each of its settings, every activation, norm,
stem and mixing, E3 and MoNE."""

import sys

import numpy as np

from espalier_reference.checking import close, run_tests, same
from espalier_reference.program import Workshop
from espalier_reference.models import decided_model

R = "model.moe.router."


def check_logits(shop, settings):
    """Returns the reference's records, so that a test can make sure that its case is one."""
    name, checkpoint, _, (expected, records) = decided_model(shop, settings, trace_of_hash)
    close(shop.logits(name), expected, 1e-5, str(settings))
    return records[0]


def trace_of_hash(shop, checkpoint, name):
    """Hash routing is fixed by numbers of the implementation's own: they are read from a trace, and checked."""
    if checkpoint.config["moe"]["router"]["policy"] != "hash":
        return None
    shop.run("measure", name, "--data", "hdf5:data.h5", "--trace", "trace.h5")
    traced = shop.trace("trace.h5")
    for choices, gates in traced.values():
        same(gates, np.ones_like(gates), "gates of hash routing")
        same(choices, np.broadcast_to(choices[:1], choices.shape), "hash routing looks at positions only")
        counts = np.bincount(choices[0].ravel(), minlength=checkpoint.config["moe"]["experts"])
        assert counts.max() - counts.min() <= 1, f"hash routing deals positions evenly: {counts}"
    return {scope: choices for scope, (choices, _) in traced.items()}


def check_all(cases):
    with Workshop() as shop:
        return [check_logits(shop, case) for case in cases]


def test_scores():
    """Softmax or sigmoid, over all or the selected, renormalised or not, k from 1 to all; but no gate that is always 1."""
    forms = (("false", "false"), ("false", "true"), ("true", "false"))
    check_all([{R + "score": score, R + "score_selected_only": selected, R + "renormalise": divided, "model.moe.top_k": k}
               for score in ("softmax", "sigmoid") for selected, divided in forms for k in (1, 3)
               if k > 1 or divided == "false" and (score, selected) != ("softmax", "true")]
              + [{"model.moe.top_k": 6, R + "renormalise": "false"}])


def test_cosine_router():
    check_all([{R + "cosine": "true", R + "temperature": t} for t in (0.1, 0.7)])


def test_noise_is_off_in_evaluation():
    check_all([{R + "noise": 3.0, R + "load_weight": 0.1}])


def test_selection_bias():
    """The bias selects; gates are of the scores without it."""
    for settings in ({}, {R + "score": "sigmoid"}, {R + "renormalise": "false"},
                     {R + "score_selected_only": "true", R + "renormalise": "false"}):
        record = check_all([dict({R + "bias_rate": 0.01}, **settings)])[0][0]
        unbiased = np.argsort(-record.routing.scores, axis=1, kind="stable")[:, :2]
        assert (unbiased != record.routing.choices).any(), "the bias changes nothing here"


def test_capacity():
    """Overflow is dropped; by rank then position, or by rank then the largest gate; groups of images; rounding."""
    for settings in ({}, {R + "batch_priority": "true"}, {R + "batch_priority": "true", R + "renormalise": "false"},
                     {R + "group_images": 3}, {R + "group_images": 5, R + "batch_priority": "true"},
                     {R + "group_images": 3, R + "evaluation_group": 7},
                     {R + "evaluation_group": 3, R + "group_images": 5}, {R + "evaluation_group": 4},
                     {R + "group_images": 0, R + "score": "sigmoid", R + "renormalise": "false"},
                     {"model.moe.top_k": 3, R + "batch_priority": "true", R + "score": "sigmoid",
                      R + "renormalise": "false"}):
        record = check_all([dict({R + "evaluation_capacity": 0.8, R + "capacity": 3.0}, **settings)])[0][0]
        dropped = ~record.routing.served
        assert 0.02 < dropped.mean() < 0.9, f"{dropped.mean()} of the slots are dropped"
        assert dropped.reshape(-1, record.request.k)[:, 0].any(), "no first choice is dropped"


def test_expert_choice():
    base = {R + "policy": "expert_choice", R + "balance_weight": 0, R + "renormalise": "false"}
    check_all([dict(base, **s) for s in ({}, {R + "score_selected_only": "true"}, {R + "score": "sigmoid"},
                                         {R + "group_images": 3}, {R + "group_images": 0, "model.moe.top_k": 1},
                                         {R + "evaluation_group": 5},
                                         {R + "cosine": "true"},
                                         {R + "score": "sigmoid", R + "score_selected_only": "true"})])


def test_soft():
    base = {"model.moe.top_k": None, R + "policy": "soft", R + "balance_weight": 0, "model.stem.patch": 2}
    check_all([dict(base, **s) for s in ({}, {R + "slots": 1}, {R + "slots": 3}, {R + "cosine": "true"})])


def test_hash_and_even():
    check_all([{R + "policy": "hash", "model.moe.top_k": 1, R + "balance_weight": 0, "model.stem.patch": 2},
               {R + "policy": "even", R + "balance_weight": 0},
               {R + "policy": "even", R + "balance_weight": 0, R + "renormalise": "false", "model.moe.top_k": 3}])


def test_activations():
    for kind in ("moe", "mone"):
        check_all([{"model.feed_forward.activation": a, "model.layers": f"[{kind}, dense]"}
                   for a in ("relu", "gelu", "squared_relu", "swiglu", "glu", "geglu", "reglu", "squared_reglu")])


def test_mone():
    """Both rankings; a share for all, and numbers of neurons for each layer."""
    for settings in ({}, {"model.moe.neuron_ranking": "pre_activation"}, {"model.moe.neurons_kept": 0.3},
                     {"model.moe.neurons_kept_per_layer": "[0.2, 4]"}, {"model.moe.shared_hidden": 3},
                     {"model.feed_forward.activation": "gelu", "model.moe.neuron_ranking": "pre_activation"}):
        record = check_all([dict({"model.layers": "[mone, mone, moe]", "model.moe.hidden": 7}, **settings)])[0][1]
        assert not np.all(record.rows.mask)


def test_rankings_differ():
    """|SiLU(x)| and |x| choose different neurons, so that a test of one cannot pass with the other."""
    records = check_all([{"model.layers": "[mone]", "model.moe.neuron_ranking": r} for r in
                         ("activation", "pre_activation")])
    assert (np.array(records[0][0].rows.mask) != np.array(records[1][0].rows.mask)).any()


def test_stems_norms_and_mixing():
    check_all([{"model.norm": n, "model.mixing": m, "model.kernel": 3, "model.positions": p}
               for n, m, p in (("layer", "convolution", "true"), ("rms", "attention", "false"), ("batch", "none", "true"))]
              + [{"model.stem.kind": "flatten", "model.mixing": "none", "model.positions": "false"},
                 {"model.stem.kind": "convolution", "model.stem.channels": "[5]", "model.stem.pools": "[2, 2]",
                  "model.stem.extra_convolutions": 1, "model.mixing": "convolution", "model.kernel": 3},
                 {"model.stem.kind": "convolution", "model.stem.channels": "[]", "model.stem.pools": "[2]",
                  "model.norm": "batch", "model.stem.whitening": 4, "model.mixing": "none"}])


def test_shared_expert_and_one_expert():
    """Row 5 of the checklist: one expert, k = 1 is a dense layer."""
    check_all([{"model.moe.shared_hidden": 4}, {"model.moe.experts": 1, "model.moe.top_k": 1}])


def test_e3():
    """Members have their own experts, are tiled before the first mixture, and predict the mean of probabilities."""
    base = {"model.moe.members": 2, "model.layers": "[dense, moe, moe]"}
    for settings in ({}, {"model.moe.members": 3, "model.moe.top_k": 1, R + "renormalise": "false"},
                     {R + "evaluation_capacity": 0.8, R + "group_images": 4}, 
                     {R + "policy": "expert_choice", R + "balance_weight": 0, R + "renormalise": "false"}):
        record = check_all([dict(base, **settings)])[0][0]
        member = record.routing.token // (record.request.tokens // record.request.members)
        same(record.routing.expert // record.request.own, member, "a member's tokens stay with its experts")


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
