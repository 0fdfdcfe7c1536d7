"""What steps do: each operation, and beside it its adjoint, with the tensors that they read and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from volseg.geometry import Triple
from volseg.networks.description import (
    Addition,
    AveragePool,
    Convolution,
    Head,
    Interpolation,
    MaxPool,
    Normalization,
    UpConvolution,
)
from volseg.partition.slabs import chain_widths
from volseg.program.tensors import Lifted, Source, Tensor, View


@dataclass(frozen=True)
class Op:
    """What a step does. `reads` and `writes` of its step follow from it."""

    def reads(self) -> Sequence[Tensor]:
        """Tensors that must be there, changed ones included."""
        return ()

    def writes(self) -> Sequence[Tensor]:
        """Tensors that begin to exist."""
        return ()

    def renames(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Tensors that cease to exist, and those that begin to exist in their memory."""
        return ()


@dataclass(frozen=True)
class Target:
    """Where an input's gradient goes.

    tensor   the gradient
    through  the norm and activation through which the input was read: the gradient before them is wanted
    add      whether it is added to what stands there
    """

    tensor: Tensor
    through: Normalization | None
    add: bool = False

    @property
    def read(self) -> tuple[Tensor, ...]:
        """The tensor, where it is there already."""
        return (self.tensor,) if self.add else ()

    @property
    def written(self) -> tuple[Tensor, ...]:
        """The tensor, where it begins to exist."""
        return () if self.add else (self.tensor,)


class _OfOne(Op):
    """An operation that makes a whole tensor of one view."""

    source: View
    output: Tensor

    def reads(self) -> Sequence[Tensor]:
        return [self.source.tensor]

    def writes(self) -> Sequence[Tensor]:
        return [self.output]


class _ToOne(Op):
    """An adjoint that gives one input its gradient."""

    target: Target

    def writes(self) -> Sequence[Tensor]:
        return self.target.written


class _Linear(_ToOne):
    """The adjoint of a linear operation without weights: its input counts only where it was read through a norm."""

    source: View
    gradient: Tensor

    def reads(self) -> Sequence[Tensor]:
        source = [] if self.target.through is None else [self.source.tensor]
        return [*source, self.gradient, *self.target.read]


@dataclass(frozen=True)
class Convolve(Op):
    """A convolution of its sources side by side, and of the output the largest of each window.

    statistics  the norm, if one takes statistics of the output
    pooled      where the largest go
    again       whether it is made again for backward: nothing but the output is needed
    """

    node: Convolution
    sources: tuple[Source, ...]
    output: Tensor
    statistics: Normalization | None = None
    pooled: Tensor | None = None
    pooling: MaxPool | None = None
    again: bool = False

    def reads(self) -> Sequence[Tensor]:
        return [source.tensor for source in self.sources]

    def writes(self) -> Sequence[Tensor]:
        return [self.output] if self.pooled is None else [self.output, self.pooled]


@dataclass(frozen=True)
class ConvolveBackward(Op):
    """The gradients of a convolution's weight and of its sources; of an image there is none.

    bias  whether that of its bias, too, which else the norm behind it has
    """

    node: Convolution
    sources: tuple[Source, ...]
    gradient: Tensor
    targets: tuple[Target, ...]
    bias: bool = False

    def reads(self) -> Sequence[Tensor]:
        added = [tensor for target in self.targets for tensor in target.read]
        return [*(source.tensor for source in self.sources), self.gradient, *added]

    def writes(self) -> Sequence[Tensor]:
        return [tensor for target in self.targets for tensor in target.written]


@dataclass(frozen=True)
class Exchange(Op):
    """The ghosts of a tensor set out; who reads it waits for them."""

    tensor: Tensor

    def reads(self) -> Sequence[Tensor]:
        return [self.tensor]


@dataclass(frozen=True)
class Normalize(Op):
    """The coefficients of a norm and its activation, from the statistics of the whole volume."""

    view: View

    def reads(self) -> Sequence[Tensor]:
        return [self.view.tensor]


@dataclass(frozen=True)
class NormalizeBackward(Op):
    """From the gradient before the activation that of the raw tensor, in its place.

    total  where the raw tensor has other readers, too, its whole gradient, to which this part is added
    add    whether parts of that are there already; else the part becomes it
    """

    view: View
    gradient: Tensor
    total: Tensor | None = None
    add: bool = False

    def reads(self) -> Sequence[Tensor]:
        own = [self.view.tensor, self.gradient]
        return [*own, self.total] if self.total is not None and self.add else own

    def renames(self) -> Sequence[tuple[Tensor, Tensor]]:
        return [] if self.total is None or self.add else [(self.gradient, self.total)]


@dataclass(frozen=True)
class Add(Op):
    """The sum of two views.

    over_first  whether it overwrites the first of them
    """

    node: Addition
    sources: tuple[View, ...]
    output: Tensor
    over_first: bool = False

    def reads(self) -> Sequence[Tensor]:
        return [source.tensor for source in self.sources]

    def writes(self) -> Sequence[Tensor]:
        return [] if self.over_first else [self.output]

    def renames(self) -> Sequence[tuple[Tensor, Tensor]]:
        return [(self.sources[0].tensor, self.output)] if self.over_first else []


@dataclass(frozen=True)
class AddBackward(Op):
    """A sum's gradient divided among its two terms: in its own memory that of the first."""

    sources: tuple[View, ...]
    gradient: Tensor
    targets: tuple[Target, ...]

    def reads(self) -> Sequence[Tensor]:
        second, terms = self.targets[1], zip(self.sources, self.targets, strict=True)
        through = [source.tensor for source, target in terms if target.through is not None]
        return [*through, self.gradient, *second.read]

    def writes(self) -> Sequence[Tensor]:
        return self.targets[1].written

    def renames(self) -> Sequence[tuple[Tensor, Tensor]]:
        return [(self.gradient, self.targets[0].tensor)]


@dataclass(frozen=True)
class UpConvolve(_OfOne):
    """An up-convolution whose whole output is there."""

    node: UpConvolution
    source: View
    output: Tensor


@dataclass(frozen=True)
class UpConvolveBackward(_ToOne):
    """The gradients of an up-convolution's weight, bias and input."""

    node: UpConvolution
    source: View
    gradient: Tensor
    target: Target

    def reads(self) -> Sequence[Tensor]:
        return [self.source.tensor, self.gradient, *self.target.read]


@dataclass(frozen=True)
class Interpolate(_OfOne):
    """An interpolation whose whole output is there."""

    node: Interpolation
    source: View
    output: Tensor


@dataclass(frozen=True)
class InterpolateBackward(_Linear):
    """The gradient of an interpolation's input, from that of its whole output with its ghosts."""

    node: Interpolation
    source: View
    gradient: Tensor
    target: Target


@dataclass(frozen=True)
class Pool(_OfOne):
    """The largest of each window of a tensor that is there already."""

    node: MaxPool
    source: View
    output: Tensor


@dataclass(frozen=True)
class Unpool(_ToOne):
    """The gradient of a pooled tensor added where the largest values were, then through the activation."""

    node: MaxPool
    source: View
    given: Tensor
    target: Target

    def reads(self) -> Sequence[Tensor]:
        return [self.source.tensor, self.given, *self.target.read]


@dataclass(frozen=True)
class Average(_OfOne):
    """The mean of each window of a tensor that is there already."""

    node: AveragePool
    source: View
    output: Tensor


@dataclass(frozen=True)
class AverageBackward(_Linear):
    """The gradient of what was averaged, from that of the means."""

    node: AveragePool
    source: View
    gradient: Tensor
    target: Target


@dataclass(frozen=True)
class Gather(Op):
    """Blocks of a stage's input to those who lead groups of ranks. `target` None: this rank does not lead."""

    stage: int
    source: Tensor
    target: Tensor | None

    def reads(self) -> Sequence[Tensor]:
        return [self.source]

    def writes(self) -> Sequence[Tensor]:
        return [] if self.target is None else [self.target]


@dataclass(frozen=True)
class GatherBackward(Op):
    """The gradient of a stage's input back to the ranks that gave it: the adjoint of `Gather`.

    through  whether it is that before an activation, which has sums
    """

    stage: int
    source: Tensor | None
    target: Tensor
    through: bool = False

    def reads(self) -> Sequence[Tensor]:
        return [] if self.source is None else [self.source]

    def writes(self) -> Sequence[Tensor]:
        return [self.target]


@dataclass(frozen=True)
class Scatter(Op):
    """Blocks of a stage's output, and its coefficients, from those who lead. `source` None: this rank does not."""

    stage: int
    source: View | None
    target: View

    def reads(self) -> Sequence[Tensor]:
        return [] if self.source is None else [self.source.tensor]

    def writes(self) -> Sequence[Tensor]:
        return [self.target.tensor]


@dataclass(frozen=True)
class ScatterBackward(Op):
    """The gradient of a stage's output to those who lead: the adjoint of `Scatter`.

    through  whether it is that before an activation, which has sums
    """

    stage: int
    source: Tensor
    target: Tensor | None
    through: bool = True

    def reads(self) -> Sequence[Tensor]:
        return [self.source]

    def writes(self) -> Sequence[Tensor]:
        return [] if self.target is None else [self.target]


@dataclass(frozen=True)
class GatherTarget(Op):
    """Blocks of what a head's loss compares with, which the caller has, to those who lead groups of ranks.

    stage   where groups merge
    source  the classes of this rank's block, on the finer grid; no tensor of the program
    target  those of the group's; None: this rank does not lead
    """

    node: Head
    stage: int
    source: Tensor
    target: Tensor | None


@dataclass(frozen=True)
class SitOut(Op):
    """What the other ranks draw at random in a stage in which this one takes no part is drawn here, too."""

    nodes: tuple[Normalization, ...]


@dataclass(frozen=True)
class Classify(Op):
    """Logits, some planes at a time, and what is done with them: the loss, or the mask."""

    node: Head
    source: View

    def reads(self) -> Sequence[Tensor]:
        return [self.source.tensor]


@dataclass(frozen=True)
class ClassifyBackward(_ToOne):
    """From the logits' gradient, some planes at a time, the head's gradients and its input's."""

    node: Head
    source: View
    target: Target

    def reads(self) -> Sequence[Tensor]:
        return [self.source.tensor, *self.target.read]


@dataclass(frozen=True)
class Fetch(Op):
    """A tensor and its coefficients as an interrupted run kept them."""

    view: View

    def writes(self) -> Sequence[Tensor]:
        return [self.view.tensor]


@dataclass(frozen=True)
class Keep(Op):
    """Coefficients are kept for a run that goes on after an interruption, and a tensor, if there is one."""

    view: View | None = None

    def reads(self) -> Sequence[Tensor]:
        return [] if self.view is None else [self.view.tensor]


@dataclass(frozen=True)
class Pass(Op):
    """A pass over the image through a chain of convolutions, of each of which a few planes exist at a time.

    The coefficients of the last one's norm come out of it, and its output pooled; or, where all coefficients are known,
    the logits, or what enters the next stage by a convolution with a stride or a pooling of activated values.

    chain     the convolutions and how each one's output is read
    pooled    where the largest of the last one's windows go
    head      what makes logits of the last one's output
    entering  what makes a whole tensor of it
    clears    whether the chain's memory goes back when the pass is done
    """

    chain: tuple[Convolve, ...]
    views: tuple[View, ...]
    pooled: Tensor | None = None
    head: Head | None = None
    entering: Convolve | Pool | None = None
    clears: bool = False

    @property
    def convolutions(self) -> Sequence[Convolve]:
        """All that are computed in it."""
        return (*self.chain, self.entering) if isinstance(self.entering, Convolve) else self.chain

    @property
    def factor(self) -> int:
        """How many planes become one of the tensor that enters the next stage; 1 where none does."""
        if self.entering is None:
            return 1
        return (self.entering.node.stride if isinstance(self.entering, Convolve) else self.entering.node.window)[0]

    @property
    def wanted(self) -> Triple:
        """Voxels around the block that are wanted of the last convolution, where the volume goes on."""
        return self.entering.node.reach if isinstance(self.entering, Convolve) else (0, 0, 0)

    def widths(self, beyond: Triple) -> list[Triple]:
        """Voxels around the block at which each convolution is computed for `beyond` of the last one."""
        return chain_widths([op.node.reach for op in self.chain], beyond)

    @property
    def measured(self) -> Tensor | None:
        """The tensor of which the pass takes the statistics for a norm."""
        made = self.entering or self.chain[-1]
        takes = self.head is None and isinstance(made, Convolve) and made.statistics is not None
        return made.output if takes else None

    def reads(self) -> Sequence[Tensor]:
        image = self.chain[0].sources[0].tensor
        return [image, *(s.tensor for op in self.chain for s in op.sources if isinstance(s, Lifted))]

    def writes(self) -> Sequence[Tensor]:
        return [*([] if self.entering is None else [self.entering.output]), *([self.pooled] if self.pooled else [])]
