"""What a model costs: parameters and FLOPs of one image, a multiply-add as two (methods.md, 5.2; measure/cost.h says what
is counted)."""

from .numerics import ACTIVATIONS


class Costs:
    def __init__(self, model):
        self.model, self.checkpoint, self.config = model, model.checkpoint, model.config
        self.moe = self.config["moe"]
        self.matrices = 3 if ACTIVATIONS[self.config["feed_forward"]["activation"]][0] else 2
        self.width, self.bias = self.config["width"], self.config["feed_forward"]["bias"]
        size = self.config["image_height"] // self.config["stem"]["patch"]
        self.tokens = size * (self.config["image_width"] // self.config["stem"]["patch"])

    def parameters(self):
        return sum(array.size for array in self.checkpoint.parameters.values())

    def expert(self, hidden):
        """Parameters of a feed-forward network; each neuron has a row of each matrix."""
        return self.matrices * hidden * self.width + ((self.matrices - 1) * hidden + self.width if self.bias else 0)

    def expert_kept(self, hidden, kept, gate_in_full):
        """Those a MoNE's expert uses for one token: the kept neurons, and W_gate in full if it counts."""
        gate = hidden if gate_in_full else kept
        biases = gate + (self.matrices - 2) * kept + self.width if self.bias else 0
        return self.width * (gate + (self.matrices - 1) * kept) + biases

    def layer(self, block):
        """(parameters, activated, activated_selected, flops, flops_selected) of a block's feed-forward part."""
        if self.checkpoint.kind(block) == "dense":
            hidden = self.config["feed_forward"]["hidden"]
            n = self.expert(hidden)
            flops = 2 * self.matrices * hidden * self.width * self.tokens
            return n, n, n, flops, flops
        moe, hidden = self.moe, self.moe["hidden"]
        members, k = moe["members"], moe["top_k"]
        layer = self.checkpoint.layers[f"blocks.{block}.moe"]
        kept = self.model.neurons_kept(block) or hidden
        router = layer.experts * self.width
        shared = self.expert(moe["shared_hidden"]) if moe["shared_hidden"] else 0
        rows = self.tokens * members
        common = 2 * rows * (router + self.matrices * moe["shared_hidden"] * self.width)
        per_row = 2 * self.matrices * hidden * self.width
        selected = 2 * self.width * (hidden + (self.matrices - 1) * kept)
        return (layer.stored * self.expert(hidden) + router + shared,
                members * k * self.expert_kept(hidden, kept, True) + router + shared,
                members * k * self.expert_kept(hidden, kept, False) + router + shared,
                common + rows * k * per_row, common + rows * k * selected)

    def flops(self):
        """Of one image: stem, mixing, feed-forward parts and head."""
        stem = self.config["stem"]
        total = 2 * self.tokens * self.width * stem["patch"] ** 2 * self.config["image_channels"]
        members = 1
        for block in range(self.config["blocks"]):
            if self.checkpoint.kind(block) != "dense":
                members = self.moe["members"]
            if self.config["mixing"] == "attention":
                per_image = 2 * self.tokens * 4 * self.width**2 + 2 * 2 * self.tokens**2 * self.width
                total += members * per_image
            here = self.layer(block)[3]
            total += here * (members if self.checkpoint.kind(block) == "dense" else 1)
        return total + 2 * members * self.width * self.config["classes"]


def mc_smoe_expert(width, hidden, rank, share):
    """Row 42: parameters of two matrices as U V + S with a share of S left."""
    return 2 * (rank * (width + hidden) + share * width * hidden)
