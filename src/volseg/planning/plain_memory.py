"""What the same network holds in training as plain torch modules: what volseg is compared with.

Autograd keeps of every convolution its input, of a norm its input, and of an activation its input (of ReLU and sigmoid
the result), of concatenations only what reads them, and of pooling its input and its indices (int64). What torch's
convolutions work in is not counted: at 96^3 with 16 channels the model says 0.94 of what was measured, with 8 channels
0.91.
"""

from __future__ import annotations

from volseg.geometry import Triple
from volseg.networks.description import Convolution, Network, Normalization
from volseg.partition.layout import padded_shape
from volseg.planning.autograd_walk import LONG, AutogradWalk, keeps_result
from volseg.planning.ledger import FLOAT


def plain_training_bytes(network: Network, shape: Triple, weight_copies: int = 4) -> int:
    """Peak bytes of a training step on a whole volume in one process, without the process itself.

    weight_copies  weights, gradients and what the optimizer keeps: 4 with AdamW
    """
    walk = _PlainWalk(network, padded_shape(shape, network.multiple), training=True)
    walk.forward()
    walk.backward()
    return walk.ledger.peak + weight_copies * network.parameters() * FLOAT


class _PlainWalk(AutogradWalk):
    def backward(self) -> None:
        """The loss, whose probabilities and one-hot labels the variables of a step keep, and all gradients."""
        book, voxels, size = self.ledger, self.voxels[0], self.network.classes * self.voxels[0]
        book.operation = "loss"
        book.make("labels", 0, LONG * voxels)
        book.make("one-hot labels", 0, LONG * size)
        for name in ("logits", "probabilities", "logarithms", "gradient of logits", "another"):
            book.make(name, 0, size)
        book.drop("logarithms", "another")
        self.head_backward()
        book.drop("gradient of logits")
        super().backward()

    def convolution(self, node: Convolution, x: str) -> None:
        self._output(node)
        self._save(node, x)

    def convolution_backward(self, node: Convolution) -> None:
        self._gradient_made(node, sum(self.network.inputs_of(node)), self.network.stage_of(node.reads[0]))

    def normalization(self, node: Normalization, x: str) -> None:
        """Up to three operations, each of which makes a tensor."""
        y = x
        for what, there in _operations(node).items():
            if there:
                result = self._make(f"{node.name}, {what}", node.stage, node.channels)
                self._refer(result, "input")
                if what != "dropout":
                    kept = result if what == "activation" and keeps_result(node) else y
                    self._refer(kept, f"saved by {node.name}, {what}")
                y = result
        self._refer(y, f"value of {node.name}")

    def normalization_backward(self, node: Normalization) -> None:
        operations = [what for what, there in _operations(node).items() if there]
        for what in reversed(operations):
            self._next_gradient(node, what)
            self._release(f"saved by {node.name}, {what}")
        if not operations:
            self._refer(self._tensor_of(f"gradient of {node.name}"), "gradient made")


def _operations(node: Normalization) -> dict[str, bool]:
    return {"norm": node.norm != "none", "activation": node.activates, "dropout": node.dropout > 0}
