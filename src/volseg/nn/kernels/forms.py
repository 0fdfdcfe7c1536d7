"""What kernels are compiled for: the types of numbers that tensors have in memory, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.networks.description import ActivationKind
from volseg.nn.kernels.jit.compiler import widest_vector
from volseg.nn.kernels.jit.language import Element
from volseg.nn.kernels.rows import Activation, Rows

ELEMENTS = {torch.float32: Element.FLOAT, torch.bfloat16: Element.BFLOAT16}
"""What the numbers of a tensor are that kernels read."""


@dataclass(frozen=True)
class Form:
    """How a kernel reads a tensor: what its numbers are in memory, and the activation that they go through."""

    element: Element
    activation: ActivationKind = "leaky_relu"


Forms = tuple[Form, ...]
"""Of a kernel's tensors, in their order."""


def readable(values: Tensor) -> bool:
    """Whether kernels read such numbers: float32 or bfloat16 in the memory of a processor that has kernels."""
    return values.device.type == "cpu" and values.dtype in ELEMENTS and widest_vector() > 0


def element_of(rows: Rows) -> Element:
    """What the numbers of a tensor are. Raises KeyError for a type that no kernel reads."""
    return ELEMENTS[rows.buffer.dtype]


def forms_of(tensors: Sequence[Activation], count: int) -> Forms:
    """The forms of `count` tensors, of which the first is there.

    To compile fewer kernels, one that is read as it is has another's activation, and one that is not there is of the
    first one's numbers.
    """
    kinds = [None if x.affine is None else x.affine.kind for x in tensors]
    usual: ActivationKind = next((kind for kind in kinds if kind is not None), "leaky_relu")
    elements = [element_of(x.rows) for x in tensors]
    missing = count - len(tensors)
    return tuple(
        Form(element, kind or usual)
        for element, kind in zip(elements + elements[:1] * missing, [*kinds, *[None] * missing], strict=True)
    )
