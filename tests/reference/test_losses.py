# label: medium
"""One training step through the trainer: its losses in metrics.csv, and the gradient that its update shows, against the
reference; every auxiliary loss, E3, label smoothing, noise and distillation."""

import sys

import numpy as np

from espalier_reference import losses
from espalier_reference.checking import close, run_tests
from espalier_reference.forward import Model, ensemble
from espalier_reference.models import decided_model
from espalier_reference.program import TRAIN, Workshop
from espalier_reference.random_streams import ROUTER_NOISE, SHUFFLE, Stream

R = "model.moe.router."
NOISE_TOKENS, MOST_BLOCKS = 256, 64  # tokens of a noise stream, streams of a step
SEED = 1
# w - rate g and nothing else, at a rate of 1
PLAIN = {"optimizer.kind": "sgd", "optimizer.momentum": 0, "optimizer.learning_rate": 1, "optimizer.weight_decay": 0,
         "optimizer.clip_norm": 0, "optimizer.schedule.kind": "constant", "optimizer.schedule.warmup": 0,
         "training.epochs": 1, "training.batch": TRAIN, "training.log_every": 1}
DIGITS = 1e-5  # metrics.csv has six


def noise_of(model, tokens, step=0):
    """scope -> [T, experts], as the router's streams deal it."""
    moe = model.config["moe"]
    deviation = moe["router"]["noise"] / (moe["experts"] // moe["members"])
    if deviation == 0:
        return None
    result = {}
    for scope in model.checkpoint.mixtures():
        noise = np.zeros((tokens, moe["experts"]))
        for part in range(0, tokens, NOISE_TOKENS):
            key = (step * MOST_BLOCKS + model.checkpoint.block_of(scope)) * 0x100000 + part // NOISE_TOKENS
            stream = Stream(SEED, ROUTER_NOISE, key)
            for t in range(part, min(part + NOISE_TOKENS, tokens)):
                noise[t] = [deviation * stream.normal() for _ in range(moe["experts"])]
        result[scope] = noise
    return result


class Step:
    """The first step of a finetuning on all training images, and what the reference says of it."""

    def __init__(self, shop, settings, extra=(), teacher=None):
        self.name, self.checkpoint, self.model, _ = decided_model(shop, settings, split="train", batch=TRAIN)
        self.extra = dict(PLAIN, **dict(extra))
        more = ("--teacher", teacher) if teacher else ()
        shop.run("finetune", self.name, "--data", "hdf5:data.h5", "--out", "stepped", "--overwrite", *more,
                 *[word for key, value in self.extra.items() for word in ("--set", f"{key}={value}")])
        self.row = next(row for row in shop.table("stepped/metrics.csv") if row["split"] == "train")
        self.after = shop.checkpoint("stepped")
        images, labels = shop.images(self.checkpoint, "train")
        order = Stream(SEED, SHUFFLE, 0).shuffled(TRAIN)
        self.images, self.labels = images[order], labels[order]
        per_image = len(self.model.stem(self.images[:1], False)[0])
        self.noise = noise_of(self.model, TRAIN * per_image * self.model.members())
        self.teacher = Model(shop.checkpoint(teacher)) if teacher else None

    def evaluate(self):
        """(task loss, auxiliary losses, records)"""
        logits, records = self.model.forward(self.images, training=True, noise=self.noise)
        task = losses.cross_entropy(logits, self.labels, float(self.extra.get("training.label_smoothing", 0)))
        auxiliary = losses.auxiliary(self.model, records)
        if self.teacher:
            auxiliary["distillation"] = self._distillation(logits)
        return task, auxiliary, records

    def _distillation(self, logits):
        temperature = float(self.extra.get("distillation.temperature", 2))
        theirs, _ = self.teacher.forward(self.images)
        if len(theirs) != len(logits):  # each member learns from the teacher's prediction
            theirs = np.tile(ensemble(theirs, self.teacher.members()), (len(logits) // len(self.images), 1))
        raw = losses.distillation(logits, theirs, temperature)
        square = temperature**2 if self.extra.get("distillation.squared") == "true" else 1
        return raw, raw * square * float(self.extra.get("distillation.weight", 0.2))

    def total(self):
        task, auxiliary, _ = self.evaluate()
        return task + sum(weighted for _, weighted in auxiliary.values())

    def check(self, names):
        task, auxiliary, self.records = self.evaluate()
        assert sorted(auxiliary) == sorted(names), f"{sorted(auxiliary)} for {names}"
        close(float(self.row["task_loss"]), task, DIGITS, "task loss")
        for name, (raw, weighted) in auxiliary.items():
            close(float(self.row[f"{name}_raw"]), raw, DIGITS, name)
            close(float(self.row[f"{name}_weighted"]), weighted, DIGITS, f"{name}, weighted")
        close(float(self.row["loss"]), task + sum(w for _, w in auxiliary.values()), DIGITS, "loss")
        return self

    def check_gradient(self):
        """The update of each group of parameters is the gradient: along itself the loss grows by its square."""
        gradient = {name: self.checkpoint.parameters[name] - self.after.parameters[name]
                    for name in self.checkpoint.parameters if name.rsplit(".", 1)[-1] not in ("router_bias",)}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        close(float(self.row["gradient_norm"]), norm, 1e-4, "norm of the gradient")
        for part in ("router", "experts", "mixing", "stem", "head", ""):
            names = [n for n in gradient if part in n]
            square = sum((gradient[n] ** 2).sum() for n in names)
            close(self.slope(gradient, names), square, 2e-3, f"gradient of {part or 'all'}")
        return self

    def slope(self, direction, names):
        size = np.sqrt(sum((direction[n] ** 2).sum() for n in names))
        step = 1e-7 / size
        values = []
        for sign in (1, -1):
            for n in names:
                self.model.p[n] = self.checkpoint.parameters[n] = self.checkpoint.parameters[n] + sign * step * direction[n]
            values.append(self.total())
            for n in names:
                self.model.p[n] = self.checkpoint.parameters[n] = self.checkpoint.parameters[n] - sign * step * direction[n]
        return (values[0] - values[1]) / (2 * step)


def check_steps(cases, names, gradient=True, extra=()):
    with Workshop() as shop:
        for case in cases:
            step = Step(shop, case, extra).check(names)
            if gradient:
                step.check_gradient()
    return step


def test_balance():
    """Slots or first choices, all scores or the selected ones; softmax and sigmoid."""
    check_steps([{R + "balance": b, R + "balance_scores": s, R + "balance_weight": 0.3, R + "score": score,
                  R + "renormalise": "false"}
                 for b in ("all_choices", "first_choice") for s in ("all", "selected")
                 for score in ("softmax", "sigmoid")], ["balance"])


def test_importance_and_load():
    """Of each group; the load with the noise that was drawn."""
    base = {R + "balance_weight": 0, R + "noise": 1.5, R + "importance_weight": 0.2, R + "load_weight": 0.1}
    check_steps([base, dict(base, **{R + "group_images": 5, "model.moe.top_k": 1, R + "renormalise": "false"}),
                 dict(base, **{"model.moe.members": 2})], ["importance", "load"])


def test_z_and_entropy():
    check_steps([{R + "balance_weight": 0, R + "z_weight": 0.1, R + "entropy_weight": -0.05},
                 {R + "balance_weight": 0, R + "z_weight": 0.1, R + "entropy_weight": 0.2, "model.moe.members": 3,
                  "model.moe.top_k": 1, R + "renormalise": "false"}], ["entropy", "z"])


def test_neuron_balance():
    """Row 47: both kinds of q, a mean over the MoNE layers."""
    base = {"model.layers": "[mone, dense, mone]", "model.moe.hidden": 7, "model.moe.neuron_balance_weight": 0.2}
    check_steps([dict(base, **{"model.moe.neuron_balance": kind, "model.moe.neuron_ranking": ranking})
                 for kind in ("norm", "abs") for ranking in ("activation", "pre_activation")],
                ["balance", "neuron_balance"])


def test_capacity_in_training():
    """capacity holds in training, evaluation_capacity does not; in groups of the shuffled images."""
    step = check_steps([{R + "capacity": 0.8, R + "evaluation_capacity": 4.0, R + "group_images": 6},
                        {R + "capacity": 0.8, R + "batch_priority": "true", R + "renormalise": "false"}], ["balance"])
    assert (~step.records[0].routing.served).any()


def test_e3():
    """Each member's cross-entropy with the repeated label."""
    check_steps([{"model.moe.members": 2, "model.layers": "[dense, moe, moe]"}], ["balance"])


def test_other_policies_and_gates():
    base = {R + "balance_weight": 0, R + "renormalise": "false"}
    check_steps([dict(base, **{R + "policy": "expert_choice"}),
                 dict(base, **{R + "policy": "expert_choice", R + "score_selected_only": "true"}),
                 dict(base, **{R + "score_selected_only": "true"}), dict(base, **{R + "cosine": "true"}),
                 {R + "balance_weight": 0, R + "score": "sigmoid"}], [])
    check_steps([{R + "policy": "soft", "model.moe.top_k": None, R + "balance_weight": 0, "model.stem.patch": 2}], [])


def test_activations():
    check_steps([{"model.feed_forward.activation": a} for a in ("gelu", "squared_relu", "glu", "geglu", "squared_reglu")],
                ["balance"])


def test_selection_bias_moves():
    """Up by the rate where fewer slots than the mean chose the expert, down where more did (arXiv 2408.15664)."""
    with Workshop() as shop:
        step = Step(shop, {R + "bias_rate": 0.01, R + "balance_weight": 0}).check([])
        for record in step.records:
            count = np.bincount(record.routing.expert, minlength=record.request.layer.experts)
            name = f"{record.scope}.router_bias"
            moved = step.after.parameters[name] - step.checkpoint.parameters[name]
            close(moved, 0.01 * np.sign(count.mean() - count), 1e-4, "move of the bias")


def test_label_smoothing():
    check_steps([{}], ["balance"], extra={"training.label_smoothing": 0.2})


def test_distillation():
    """KL(teacher || student), not the reverse, at a temperature; with its square if asked for; E3 from member to member,
    or from the whole."""
    with Workshop() as shop:
        teacher, ensemble_teacher = shop.model({}, seed=77), shop.model({"model.moe.members": 2}, seed=78)
        for settings, of, extra in (({}, teacher, {}), ({}, teacher, {"distillation.temperature": 0.7,
                                                                    "distillation.weight": 1.5,
                                                                    "distillation.squared": "true"}),
                                    ({"model.moe.members": 2}, ensemble_teacher, {}), ({}, ensemble_teacher, {}),
                                    ({"model.moe.members": 2}, teacher, {})):
            Step(shop, settings, extra, of).check(["balance", "distillation"]).check_gradient()


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
