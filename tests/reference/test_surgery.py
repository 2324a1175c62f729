# label: medium
"""What becomes of a model: the three modes of pruning, narrowed and factored experts, dynamic skipping, sparsification, and
what it all costs."""

import sys

import numpy as np

from espalier_reference import criteria
from espalier_reference.checking import close, run_tests, same
from espalier_reference.costs import Costs, mc_smoe_expert
from espalier_reference.forward import Model, ensemble, expert_weights, run_expert
from espalier_reference.losses import cross_entropy
from espalier_reference.merging import PARTS, stable_rank
from espalier_reference.models import decided_model
from espalier_reference.program import TRAIN, Workshop
from espalier_reference.routers import MASKED, ZERO

R = "model.moe.router."


def check_file(shop, name):
    """The checkpoint as the reference reads it predicts what the program does."""
    checkpoint = shop.checkpoint(name)
    model = Model(checkpoint)
    prediction, records = model.predict(shop.images(checkpoint)[0])
    close(shop.logits(name), prediction, 1e-5, f"logits of {name}")
    return checkpoint, model, records[0]


def pruned_in_place(shop, checkpoint, plan, index):
    """Logits of the unpruned checkpoint with the plan's experts marked."""
    for layer in plan["layers"]:
        gone = [e["expert"] for e in layer["experts"] if e["target"] != e["expert"]]
        assert gone
        checkpoint.layers[layer["name"].replace("mone", "moe")].index[gone] = index
    return Model(checkpoint).predict(shop.images(checkpoint)[0])[0]


def test_modes_of_pruning():
    """Rows 17 and 18: kept with zero output, removed, masked; the last two are one function."""
    with Workshop() as shop:
        for settings in ({R + "renormalise": "false"}, {R + "score": "sigmoid"}, {"model.moe.members": 2},
                         {R + "bias_rate": 0.01}):
            name = decided_model(shop, settings)[0]
            logits = {}
            for mode, index in (("zero", ZERO), ("remove", MASKED), ("mask", MASKED)):
                shop.run("prune", name, "--criterion", "weight-norm", "--drop", 2, "--mode", mode, "--out", "pruned",
                         "--overwrite")
                check_file(shop, "pruned")
                logits[mode] = shop.logits("pruned")
                expected = pruned_in_place(shop, shop.checkpoint(name), shop.plan("pruned"), index)
                close(logits[mode], expected, 1e-5, f"{mode} of {settings}")
            close(logits["remove"], logits["mask"], 1e-6, "removed and masked")
            assert np.abs(logits["zero"] - logits["mask"]).max() > 1e-3


def test_narrowed_experts():
    """Experts of different widths: the neurons that the plan leaves."""
    with Workshop() as shop:
        for kind in ("moe", "mone"):
            name = decided_model(shop, {"model.layers": f"[{kind}, dense]", "model.moe.hidden": 9,
                                        **({"model.moe.neurons_kept": 0.3} if kind == "mone" else {})})[0]
            shop.run("prune", name, "--criterion", "neuron-weight-norm", "--ratio", 0.4, "--budget", "layer", "--out",
                     "narrow", "--overwrite")
            checkpoint, _, _ = check_file(shop, "narrow")
            assert len(set(checkpoint.layers["blocks.0.moe"].widths)) > 1


def test_skipping():
    """Row 33: beta is the median of g_k over the others; k = 2 and 3, gates renormalised or not."""
    with Workshop() as shop:
        for k in (2, 3):
            for divided in ("true", "false"):
                name, _, _, (_, batches) = decided_model(shop, {"model.moe.top_k": k, R + "renormalise": divided},
                                                         split="train", batch=64)
                found = shop.json("skip", name, "--data", "hdf5:data.h5", "--calibration", 100000, "--out", "skipping",
                                  "--overwrite")["layers"]
                for i, layer in enumerate(found):
                    gates = np.concatenate([b[i].routing.gate.reshape(-1, k) for b in batches])
                    close(layer["beta"], np.median(gates[:, -1] / gates[:, :-1].sum(1)), 1e-5, "beta")
                for beta in (0.6, 1.5):
                    shop.run("skip", name, "--beta", beta, "--out", "skipping", "--overwrite")
                    _, _, records = check_file(shop, "skipping")
                    skipped = [record.routing.skipped / record.routing.gate.size for record in records]
                    assert 0.01 < max(skipped) < 0.9, f"{skipped} of the choices are skipped"


def test_factored_experts():
    """Rows 41 and 42: U V of rank r is the best there is, the rows of S that are left are those of W - U V, and only a
    share of their elements is."""
    with Workshop() as shop:
        for activation in ("swiglu", "relu"):
            name = decided_model(shop, {"model.feed_forward.activation": activation, "model.moe.hidden": 8})[0]
            before = shop.checkpoint(name)
            shop.run("compress", name, "--data", "hdf5:data.h5", "--out", "factored", "--zero-shot", "--calibration", 48,
                     "--rank", 3, "--share", 0.4, "--overwrite")
            after, _, _ = check_file(shop, "factored")
            left = total = 0
            for scope in before.mixtures():
                layer = after.layers[scope]
                left += layer.sparse_up_rows.sum() * before.config["width"] + layer.sparse_down_rows.sum() * 8
                for s in range(before.layers[scope].stored):
                    check_factors(before, after, scope, s)
                    total += sum(w.size for w in matrices(before, scope, s))
            assert abs(left - total * 0.4) < before.config["width"], f"{left} of {total} elements are left, not to a row"
            check_ranks(shop, before, after)
        close(mc_smoe_expert(768, 3072, 32, 0.1) / 1e6, 0.7176, 1e-4, "parameters of a factored expert")


STILL = {"optimizer.kind": "sgd", "optimizer.momentum": 0, "optimizer.weight_decay": 0, "optimizer.clip_norm": 0,
         "optimizer.schedule.kind": "constant", "optimizer.schedule.warmup": 0, "training.batch": TRAIN}


def run_still(shop, command, name, out, rate, *arguments, **settings):
    shop.run(command, name, "--data", "hdf5:data.h5", "--out", out, "--overwrite", *arguments,
             *[w for k, v in dict(STILL, **settings, **{"optimizer.learning_rate": rate}).items() for w in ("--set", f"{k}={v}")])


def test_importance_of_rows():
    """Row 42: the rows of S that stay are those with the largest mean |s dL/ds|, over all matrices of all layers together
    and counted by their elements. Steps that move nothing, the first without pruning, the second with all of it; the
    gradient comes from a step of the trainer (test_losses.py holds it)."""
    with Workshop() as shop:
        name = decided_model(shop, {"model.moe.hidden": 8, R + "balance_weight": 0}, split="train", batch=TRAIN)[0]
        run_still(shop, "finetune", name, "stepped", 1, **{"training.epochs": 1})
        run_still(shop, "compress", name, "factored", 1e-9, "--rank", 3, "--share", 0.4,
                  **{"training.epochs": 3, "compression.start": 0.6, "compression.finish": 0.34})
        before, stepped, after = (shop.checkpoint(n) for n in (name, "stepped", "factored"))
        rows, there = [], []
        for scope in before.mixtures():
            for s in range(before.layers[scope].stored):
                for w, moved in zip(matrices(before, scope, s), matrices(stepped, scope, s)):
                    u, sigma, v = np.linalg.svd(w)
                    sparse = w - (u[:, :3] * sigma[:3]) @ v[:3]
                    rows += [(value, w.shape[1]) for value in np.abs(sparse * (w - moved)).mean(1)]
                there += list(rows_of_s(after, scope, s))
        check_rows_left(np.array(rows), np.array(there))


def check_rows_left(rows, there):
    importance, sizes = rows[:, 0], rows[:, 1]
    assert importance[there].min() > importance[~there].max() * (1 - 1e-4), "a row stays that matters less than one that goes"
    left = sizes[there].sum() / sizes.sum()
    assert abs(left - 0.4) * sizes.sum() < sizes.max(), f"{left} of the elements are left"


def matrices(checkpoint, scope, stored):
    """Each as [out, in]."""
    w = expert_weights(checkpoint, scope, stored)
    return [w[p].T if p == "down" else w[p] for p in PARTS if w[p] is not None]


def check_factors(before, after, scope, stored):
    """A row is as it was where S has it, else that of U V."""
    rows = rows_of_s(after, scope, stored)
    for original, found in zip(matrices(before, scope, stored), matrices(after, scope, stored)):
        u, sigma, v = np.linalg.svd(original)
        low = (u[:, :3] * sigma[:3]) @ v[:3]
        whole, rows = rows[: len(original)], rows[len(original) :]
        close(found, np.where(whole[:, None], original, low), 1e-5, "U V + S")


def rows_of_s(checkpoint, scope, stored):
    """Which rows S has, of gate and up one after another, and of down."""
    layer, result = checkpoint.layers[scope], []
    gated = f"{scope}.experts.gate_up_u" in checkpoint.parameters
    for name, counts in (("gate_up" if gated else "up", layer.sparse_up_rows), ("down", layer.sparse_down_rows)):
        first = counts[:stored].sum()
        there = np.zeros(checkpoint.parameters[f"{scope}.experts.{name}_u"].shape[1], bool)
        there[checkpoint.parameters[f"{scope}.experts.{name}_rows"][first : first + counts[stored]].astype(int)] = True
        result.append(there)
    return np.concatenate(result)


def check_ranks(shop, before, after):
    """compression.csv, of each matrix before and after."""
    rows = iter(shop.table("factored/compression.csv"))
    for scope in before.mixtures():
        for s in range(before.layers[scope].stored):
            for old, new in zip(matrices(before, scope, s), matrices(after, scope, s)):
                row = next(rows)
                close(float(row["stable_rank_before"]), stable_rank(old), 1e-5, "stable rank before")
                close(float(row["stable_rank_after"]), stable_rank(new), 1e-5, "stable rank after")


# --- sparsification -----------------------------------------------------------------------------------------------


class Sparsified(Model):
    """Of the neurons a token activates in an expert a share is left out, in one of the orders."""

    def __init__(self, checkpoint, order, share):
        super().__init__(checkpoint)
        self.order, self.share = order, share

    def compute_rows(self, scope, inputs, expert, slot):
        rows = super().compute_rows(scope, inputs, expert, slot)
        for i, stored in enumerate(rows.stored):
            if stored < 0:
                continue
            w = expert_weights(self.checkpoint, scope, stored)
            hidden = np.where(rows.mask[i], rows.hidden[i], 0)
            gate = criteria.gates_of(self.checkpoint, rows.pre[i])
            key = {"smallest": np.abs(gate), "largest": -np.abs(gate),
                   "contribution": np.abs(hidden) * np.linalg.norm(w["down"], axis=1)}[self.order]
            active = np.flatnonzero(rows.mask[i])
            count = int(self.share * len(active) + 0.5)
            hidden[active[np.argsort(key[active], kind="stable")[:count]]] = 0
            rows.output[i] = hidden @ w["down"] + (0 if w["down_bias"] is None else w["down_bias"])
        return rows


def test_sparsification():
    """Row 49: every order and share, of MoE and MoNE, with three matrices and two."""
    with Workshop() as shop:
        for settings in ({"model.moe.hidden": 10}, {"model.layers": "[mone, dense, moe]", "model.moe.hidden": 10,
                                                   "model.moe.neurons_kept": 0.6},
                         {"model.feed_forward.activation": "gelu", "model.moe.hidden": 10}):
            name, checkpoint, _, _ = decided_model(shop, settings)
            shop.run("measure", name, "--data", "hdf5:data.h5", "--sparsify", "--layers", "together", "--out", "sparse")
            images, labels = shop.images(checkpoint)
            checked = 0
            for row in shop.table("sparse/sparsify.csv"):
                if row["order"] == "random" or row["layer"] != "all":
                    continue
                logits, _ = Sparsified(checkpoint, row["order"], float(row["q"])).forward(images)
                close(float(row["loss"]), cross_entropy(ensemble(logits, 1), labels), 1e-5, f"{settings} {row}")
                checked += 1
            assert checked == 36, f"{checked} rows"


# --- costs --------------------------------------------------------------------------------------------------------


def test_costs():
    """Row 48: parameters, activated in both counts, FLOPs of both paths, of each layer and of the whole."""
    with Workshop() as shop:
        for settings in ({}, {"model.layers": "[mone, dense, mone]", "model.moe.hidden": 9, "model.moe.neurons_kept": 0.3},
                         {"model.moe.shared_hidden": 3, "model.moe.top_k": 3}, {"model.moe.members": 2},
                         {"model.feed_forward.activation": "relu", "model.feed_forward.bias": "false"}):
            name = shop.model(settings)
            costs, found = Costs(Model(shop.checkpoint(name))), shop.json("inspect", name)
            same(found["parameters"], costs.parameters(), f"parameters of {settings}")
            activated = found["parameters"]
            for block, layer in enumerate(found["layers"]):
                parameters, active, selected, flops, sparse = costs.layer(block)
                same([layer["parameters"], layer["activated_parameters"], layer["activated_parameters_selected"]],
                     [parameters, active, selected], f"{layer['name']} of {settings}")
                if settings.get("model.moe.members", 1) == 1:
                    same([layer["flops"], layer["flops_selected"]], [flops, sparse], f"FLOPs of {layer['name']}")
                activated -= parameters - active
            same(found["activated_parameters"], activated, "activated")
            same(found["flops_per_image"], costs.flops(), f"FLOPs of {settings}")


def test_one_expert_is_a_dense_layer():
    """Rows 5 and 10: one expert with gate 1 yields what a dense layer of its weights does."""
    with Workshop() as shop:
        name, checkpoint, model, _ = decided_model(shop, {"model.moe.experts": 1, "model.moe.top_k": 1,
                                                          R + "renormalise": "false"})
        images, _ = shop.images(checkpoint)
        _, records = model.forward(images)
        for record in records:
            dense = run_expert(expert_weights(checkpoint, record.scope, 0), record.input, "swiglu")[3]
            close(record.output, dense, 1e-12, "one expert")
        check_file(shop, name)


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
