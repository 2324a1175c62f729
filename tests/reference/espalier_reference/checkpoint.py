"""Checkpoints as checkpoints/FORMAT.md has them: read with h5py, and rewritten with other parameters."""

import os
import struct

import h5py
import numpy as np


def fnv1a(data, hash_=0xCBF29CE484222325):
    """FNV-1a, 64 bits."""
    for byte in data:
        hash_ = ((hash_ ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return hash_


def _scalar(text):
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("["):
        return [_scalar(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text.strip("'\"")


def parse_yaml(text):
    """The subset of YAML that the program writes: nested mappings, scalars, lists in brackets or with dashes."""
    root = {}
    stack = [(-1, root)]
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("---", "..."))]
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        while stack[-1][0] >= indent and not line.lstrip().startswith("- "):
            stack.pop()
        if line.lstrip().startswith("- "):
            stack[-1][1].append(_scalar(line.strip()[2:]))
            continue
        key, _, value = line.strip().partition(":")
        if value.strip():
            stack[-1][1][key] = _scalar(value.strip())
            continue
        following = lines[number + 1] if number + 1 < len(lines) else ""
        child = [] if following.lstrip().startswith("- ") else {}
        stack[-1][1][key] = child
        stack.append((indent, child))
    return root


class Layer:
    """What became of a mixture layer's experts."""

    def __init__(self, group):
        self.kind = group.attrs["kind"].decode()
        self.experts = int(group.attrs["experts"])
        self.stored = int(group.attrs["stored_experts"])
        self.index = group["index"][:].astype(int)
        self.original_ids = group["original_ids"][:].astype(int)
        self.skip = float(group["skip"][0]) if "skip" in group else 0.0
        self.has_skip = "skip" in group
        self.widths = group["widths"][:].astype(int) if "widths" in group else None
        self.rank = int(group.attrs["rank"]) if "rank" in group.attrs else 0
        self.pruning = int(group.attrs["pruning"]) if "pruning" in group.attrs else 0
        self.sparse_up_rows = group["sparse_up_rows"][:].astype(int) if self.rank else None
        self.sparse_down_rows = group["sparse_down_rows"][:].astype(int) if self.rank else None


class Checkpoint:
    """A model: its config, its layers' states and its parameters in double precision."""

    def __init__(self, path):
        self.path = path if path.endswith(".h5") else os.path.join(path, "last.h5")
        with h5py.File(self.path, "r") as file:
            self.config_text = file["architecture/config"][0]
            self.config = parse_yaml(self.config_text.decode())
            layers = file["architecture/layers"] if "layers" in file["architecture"] else {}
            # A MoNE's parameters are called as an MoE's, so that both start alike.
            self.layers = {scope.replace(".mone", ".moe"): Layer(layers[scope]) for scope in layers}
            self.parameters = {}
            file["parameters"].visititems(self._take)
            data = file["data"][0]
            channels = self.config["image_channels"]
            self.mean = data["mean"][:channels].astype(float)
            self.deviation = data["deviation"][:channels].astype(float)
            self.attributes = dict(file.attrs)

    def _take(self, name, item):
        if isinstance(item, h5py.Dataset):
            self.parameters[name] = item[:].astype(float)

    def kind(self, block):
        kinds = self.config["layers"]
        return kinds[block % len(kinds)]

    def mixtures(self):
        """The scopes of the mixture layers, in order."""
        return [f"blocks.{b}.moe" for b in range(self.config["blocks"]) if self.kind(b) != "dense"]

    def block_of(self, scope):
        return int(scope.split(".")[1])


def _layer_digest(layer, hash_):
    if layer is None:
        return fnv1a(struct.pack("<ii", 0, 0), hash_)
    data = struct.pack("<ii", layer.experts, layer.stored)
    data += layer.index.astype("<i4").tobytes() + layer.original_ids.astype("<i4").tobytes()
    if layer.widths is not None:
        data += layer.widths.astype("<i4").tobytes()
    if layer.has_skip:
        data += struct.pack("<d", layer.skip)
    if layer.rank:
        data += struct.pack("<ii", layer.rank, layer.pruning)
        data += layer.sparse_up_rows.astype("<i4").tobytes() + layer.sparse_down_rows.astype("<i4").tobytes()
    return fnv1a(data, hash_)


def digest(checkpoint, order, arrays):
    """The digest of FORMAT.md; `order` names the parameters as the model declares them."""
    hash_ = fnv1a(checkpoint.config_text.rstrip(b"\0") + b"\0")
    for block in range(checkpoint.config["blocks"]):
        hash_ = _layer_digest(checkpoint.layers.get(f"blocks.{block}.moe"), hash_)
    for name in order:
        array = arrays[name].astype("<f4")
        hash_ = fnv1a(name.encode() + b"\0", hash_)
        hash_ = fnv1a(np.array(array.shape, "<i8").tobytes(), hash_)
        hash_ = fnv1a(array.tobytes(), hash_)
    return f"{hash_:016x}"


def _unseal(path):
    with open(path, "rb") as file:
        data = file.read()
    if data[-24:-16] == b"espalier":
        data = data[:-24]
    with open(path, "wb") as file:
        file.write(data)


def seal(path):
    """Puts the 24 bytes behind the HDF5 file that say it is whole."""
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "ab") as file:
        file.write(b"espalier" + struct.pack("<QQ", len(data), fnv1a(data)))


def rewrite(path, order, change):
    """Gives each parameter of the file the values change(name, array) returns, then digest and seal anew."""
    checkpoint = Checkpoint(path)
    arrays = {name: np.asarray(change(name, array), "f4") for name, array in checkpoint.parameters.items()}
    _unseal(checkpoint.path)
    with h5py.File(checkpoint.path, "r+") as file:
        for name, array in arrays.items():
            file["parameters"][name][...] = array
        file.attrs.modify("digest", np.bytes_(digest(checkpoint, order, arrays)))
    seal(checkpoint.path)
