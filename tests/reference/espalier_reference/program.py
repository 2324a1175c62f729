"""Runs the program: makes data and tiny models with random parameters, and reads what it writes."""

import csv
import json
import os
import shutil
import subprocess
import tempfile

import h5py
import numpy as np

from .checkpoint import Checkpoint, rewrite

PROGRAM = os.environ.get("ESPALIER_PROGRAM", "espalier")
TRAIN, TEST = 48, 40


class ProgramFailed(Exception):
    """The program ended with another exit code than 0."""


class Workshop:
    """A folder of its own with a data set; goes when it is left."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="espalier-reference-")
        self.made = 0
        self.orders = {}
        self.data(4, 8, 1)
        return self

    def __exit__(self, *_):
        if "ESPALIER_KEEP" not in os.environ:
            shutil.rmtree(self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def data(self, classes, size, seed, name="data.h5", channels=3):
        """Random images of which each has its own brightness and a colour, so that experts are used unevenly."""
        random = np.random.default_rng(seed)
        with h5py.File(self.path(name), "w") as file:
            for prefix, count in (("", TRAIN), ("test_", TEST)):
                level = random.uniform(0, 200, (count, channels, 1, 1))
                images = np.clip(level + random.normal(0, 50, (count, channels, size, size)), 0, 255)
                file[prefix + "images"] = images.astype(np.uint8)
                file[prefix + "labels"] = random.permutation(np.arange(count) % classes).astype(np.int32)
        return name

    def images(self, checkpoint, split="test", name="data.h5"):
        """(normalised images [N, H, W, C], labels)"""
        prefix = "test_" if split == "test" else ""
        with h5py.File(self.path(name), "r") as file:
            pixels, labels = file[prefix + "images"][:], file[prefix + "labels"][:]
        pixels = pixels.transpose(0, 2, 3, 1).astype(float) / 255
        return (pixels - checkpoint.mean) / checkpoint.deviation, labels.astype(int)

    def run(self, *arguments):
        environment = dict(os.environ, OMP_WAIT_POLICY="passive")
        done = subprocess.run([PROGRAM, *map(str, arguments), "--threads", "1", "--quiet"], cwd=self.folder,
                              env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ProgramFailed(f"espalier {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--json"))

    def table(self, name):
        """A CSV file as a list of dictionaries."""
        with open(self.path(name), encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def order(self, name):
        """The parameters as the model declares them."""
        if name not in self.orders:
            shapes = self.json("inspect", name, "--parameters")["parameter_shapes"]
            self.orders[name] = [p["name"] for p in shapes]
        return self.orders[name]

    def model(self, settings, seed=1, data="data.h5", scale=1.0, name=None):
        """A run folder with a model of these settings and random parameters, biases and norms included. A setting
        that is None is left out of SMALL's."""
        self.made += 1
        name = name or f"model{self.made}"
        chosen = fitting(dict(SMALL, **settings))
        self.orders.pop(name, None)
        self.run("pretrain", "--data", f"hdf5:{data}", "--out", name, "--set", "training.epochs=0",
                 *[word for key, value in chosen.items() for word in ("--set", f"{key}={value}")])
        self.shake(name, seed, scale)
        return name

    def shake(self, name, seed, scale=1.0):
        random = np.random.default_rng(seed)
        rewrite(self.path(name if name.endswith(".h5") else f"{name}/last.h5"), self.order(name),
                lambda parameter, array: random_values(parameter, array, random, scale))

    def checkpoint(self, name):
        return Checkpoint(self.path(name))

    def logits(self, name, *arguments, data="data.h5"):
        """What `evaluate` predicts for each image."""
        self.run("evaluate", name, "--data", f"hdf5:{data}", "--logits", "logits.csv", *arguments)
        return np.array([[float(row[key]) for key in row if key.startswith("logit.")]
                         for row in self.table("logits.csv")])

    def trace(self, name):
        return read_trace(self.path(name))

    def plan(self, name):
        with open(self.path(f"{name}/plan.json"), encoding="utf-8") as file:
            return json.load(file)


def read_trace(path):
    """scope -> (choices, gates), both [images, members, tokens, k]."""
    with h5py.File(path, "r") as file:
        return {scope: (file[f"layers/{scope}/choices"][:], file[f"layers/{scope}/gates"][:])
                for scope in file["layers"]}


# Small, but with all that makes variants differ: several layers of both kinds, k > 1, biases, positions.
SMALL = {
    "model.stem.patch": 4, "model.width": 12, "model.blocks": 3, "model.mixing": "attention", "model.heads": 2,
    "model.feed_forward.bias": "true", "model.feed_forward.hidden": 10, "model.layers": "[moe, dense, moe]",
    "model.moe.experts": 6, "model.moe.top_k": 2, "model.moe.hidden": 5, "training.batch": 16, "training.epochs": 0,
    "data.validation": 0,
}


def fitting(settings):
    """Without what is None, and what would do nothing, which the program refuses."""
    chosen = {key: value for key, value in settings.items() if value is not None}
    if chosen["model.mixing"] != "attention":
        chosen.pop("model.heads", None)
    if chosen["model.mixing"] != "convolution":
        chosen.pop("model.kernel", None)
    if "dense" not in chosen["model.layers"]:
        chosen.pop("model.feed_forward.hidden", None)
    if chosen.get("model.stem.kind", "patch") != "patch":
        chosen.pop("model.stem.patch", None)
    return chosen


def random_values(name, array, random, scale):
    """Parameters under which things differ: uneven routers, gains around 1, biases that matter."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "router":
        flat = array.reshape(array.shape[0], -1)
        rows = random.normal(0, 1, flat.shape) * random.uniform(0.3, 1.2, (len(flat), 1))
        return rows.reshape(array.shape) * 0.7
    if leaf == "router_bias":
        return random.normal(0, 0.1, array.shape)
    if leaf in ("gain", "variance"):
        return random.uniform(0.6, 1.4, array.shape)
    if leaf == "mean" or leaf.endswith("bias") or leaf == "positions":
        return random.normal(0, 0.2, array.shape)
    if ".experts." in name and array.ndim == 3:
        spread = random.uniform(0.4, 1.6, (array.shape[0], 1, 1))  # no two experts are of one size
        return random.normal(0, scale / np.sqrt(array.shape[-1]), array.shape) * spread
    inputs = np.prod(array.shape[1:]) if array.ndim > 1 and "mixing.weight" not in name else 9
    return random.normal(0, scale / np.sqrt(inputs), array.shape)
