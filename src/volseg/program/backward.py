"""The backward steps, derived from the forward ones: each has its adjoint here, and they run in reverse."""

from __future__ import annotations

from collections.abc import Sequence

from volseg.networks.description import IMAGE, Interpolation, MaxPool
from volseg.program.ops import (
    Add,
    AddBackward,
    Average,
    AverageBackward,
    Classify,
    ClassifyBackward,
    Convolve,
    ConvolveBackward,
    Exchange,
    Gather,
    GatherBackward,
    Interpolate,
    InterpolateBackward,
    Normalize,
    NormalizeBackward,
    Op,
    Pool,
    Scatter,
    ScatterBackward,
    Target,
    Unpool,
    UpConvolve,
    UpConvolveBackward,
)
from volseg.program.step import Step
from volseg.program.tensors import Lifted, Source, Tensor, View


def backward_steps(forward: Sequence[Step]) -> list[Step]:
    """The steps from the gradients of the logits to those of all weights."""
    return _Backward(forward).run()


class _Backward:
    """Goes through the forward steps in reverse.

    pooled  by the tensor that was pooled, how
    bare    tensors whose gradient is that of the activated values: they are pooled ones, whose activation is gone
            through where they came from
    begun   gradients of which a part is there already
    lifting the last convolution, going backward, that reads each interpolation that is never whole
    normed  tensors that are read through a norm; of these `split` those that are read in other ways, too: each norm
            then has a gradient of its own, which goes through it to the tensor's
    """

    def __init__(self, forward: Sequence[Step]) -> None:
        self.forward = forward
        self.steps: list[Step] = []
        self.begun: set[Tensor] = set()
        self.pooled: dict[Tensor, tuple[Tensor, MaxPool]] = {}
        self.bare: set[Tensor] = set()
        self.lifting: dict[Lifted, Convolve] = {}
        self.normed = {step.op.view.tensor for step in forward if isinstance(step.op, Normalize)}
        views = {view for step in forward for view in _views(step.op)}
        self.split = {view.tensor for view in views if len({v.node for v in views if v.tensor == view.tensor}) > 1}
        for step in forward:
            match step.op:
                case Convolve() as op:
                    self._enter_convolution(op)
                case Pool() as op:
                    self._enter_pooled(op.source.tensor, op.output, op.node)
                case Gather(source=source, target=Tensor() as target) if source in self.bare:
                    self.bare.add(target)

    def _enter_convolution(self, op: Convolve) -> None:
        for source in op.sources:
            if isinstance(source, Lifted) and isinstance(source.node, Interpolation):
                self.lifting.setdefault(source, op)
        if op.pooled is not None and op.pooling is not None:
            self._enter_pooled(op.output, op.pooled, op.pooling)

    def _enter_pooled(self, tensor: Tensor, pooled: Tensor, node: MaxPool) -> None:
        self.pooled[tensor] = pooled, node
        self.bare.add(pooled)

    def run(self) -> list[Step]:
        for step in reversed(self.forward):
            match step.op:
                case Classify() as op:
                    target = self._target(op.source)
                    self.steps.append(Step(ClassifyBackward(op.node, op.source, target), step.label))
                case Normalize() as op:
                    self._normalize(op, step.label)
                case Convolve() as op:
                    self._convolve(op, step.label)
                case Add() as op:
                    self._add(op, step.label)
                case UpConvolve() as op:
                    backward = UpConvolveBackward(op.node, op.source, op.output.gradient, self._target(op.source))
                    self._emit(backward, step.label)
                case Average() as op:
                    backward_of_mean = AverageBackward(op.node, op.source, op.output.gradient, self._target(op.source))
                    self._emit(backward_of_mean, step.label)
                case Interpolate() as op:
                    self._interpolate(op.node, op.source, op.output.gradient, step.label)
                case Gather() as op:
                    given = None if op.target is None else op.target.gradient
                    label = f"level {op.stage}, scattered"
                    through = op.source in self.normed
                    self._emit(GatherBackward(op.stage, given, self._begin(op.source), through), label)
                case Scatter() as op:
                    wanted = None if op.source is None else self._begin(op.source.tensor)
                    label, through = f"level {op.stage}, gathered", op.target.node is not None
                    self._emit(ScatterBackward(op.stage, op.target.tensor.gradient, wanted, through), label)
        return self.steps

    def _emit(self, op: Op, label: str) -> None:
        self.steps.append(Step(op, f"{label}, backward"))

    def _begin(self, tensor: Tensor) -> Tensor:
        self.begun.add(tensor.gradient)
        return tensor.gradient

    def _target(self, source: Source) -> Target:
        """Where a reader puts its part of the gradient of what it read."""
        if isinstance(source, Lifted) and isinstance(source.node, Interpolation):
            view, gradient = View(source.whole), source.whole.gradient
        else:
            view = source.view if isinstance(source, Lifted) else source
            gradient = self._gradient_of(view)
        add = gradient in self.begun
        self.begun.add(gradient)
        # Where a pooled tensor's gradient is still to come, the activation is gone through with that.
        through = None if view.tensor in self.bare or view.tensor in self.pooled else view.node
        return Target(gradient, through, add)

    def _gradient_of(self, view: View) -> Tensor:
        return view.own_gradient if view.node is not None and view.tensor in self.split else view.tensor.gradient

    def _normalize(self, op: Normalize, label: str) -> None:
        tensor = op.view.tensor
        if tensor in self.pooled:
            pooled, node = self.pooled[tensor]
            gradient = self._gradient_of(op.view)
            add = gradient in self.begun
            self.begun.add(gradient)
            self._emit(Unpool(node, op.view, pooled.gradient, Target(gradient, op.view.node, add)), label)
        if tensor in self.split:
            add = tensor.gradient in self.begun
            self._emit(NormalizeBackward(op.view, op.view.own_gradient, self._begin(tensor), add), label)
        else:
            self._emit(NormalizeBackward(op.view, tensor.gradient), label)

    def _add(self, op: Add, label: str) -> None:
        first = self._target(op.sources[0])
        assert not first.add, f"{label}: its first term is read by others, too"
        second = self._target(op.sources[1])
        self._emit(AddBackward(op.sources, op.output.gradient, (first, second)), label)

    def _convolve(self, op: Convolve, label: str) -> None:
        gradient = op.output.gradient
        targets = tuple(self._target(source) for source in op.sources if source.tensor.name != IMAGE)
        if targets and max(op.node.kernel) > 1:
            self._emit(Exchange(gradient), label)
        bias = op.node.bias and (op.output in self.split or op.output not in self.normed)
        self._emit(ConvolveBackward(op.node, op.sources, gradient, targets, bias), label)
        for source, first in self.lifting.items():
            if first is op and isinstance(source.node, Interpolation):
                self._interpolate(source.node, source.view, source.whole.gradient, source.node.name)

    def _interpolate(self, node: Interpolation, source: View, gradient: Tensor, label: str) -> None:
        if max(node.reads_beside):
            self._emit(Exchange(gradient), label)
        self._emit(InterpolateBackward(node, source, gradient, self._target(source)), label)


def _views(op: Op) -> list[View]:
    """How an operation reads tensors whose gradients are wanted."""
    match op:
        case Convolve() | Add():
            views = [source.view if isinstance(source, Lifted) else source for source in op.sources]
            return [view for view in views if view.tensor.name != IMAGE]
        case Classify() | Pool() | Average() | UpConvolve() | Interpolate():
            return [op.source]
        case Scatter(source=View() as source):
            return [source]
    return []
