"""The forward steps of a description: what is computed, exchanged, gathered and scattered, in order."""

from __future__ import annotations

from dataclasses import replace

from volseg.networks.description import (
    IMAGE,
    Addition,
    AveragePool,
    Convolution,
    Head,
    Interpolation,
    MaxPool,
    Network,
    Node,
    Normalization,
    UpConvolution,
)
from volseg.program.ops import (
    Add,
    Average,
    Classify,
    Convolve,
    Exchange,
    Gather,
    GatherTarget,
    Interpolate,
    Normalize,
    Op,
    Pool,
    Scatter,
    SitOut,
    UpConvolve,
)
from volseg.program.step import Step
from volseg.program.tensors import Lifted, Source, Tensor, View


def forward_steps(
    network: Network, merges: frozenset[int], last: int, *, loss: bool = False, beyond: bool = False
) -> list[Step]:
    """The steps of a rank that takes part in the stages up to `last`.

    merges  stages whose process grid is coarser than that of the stage before
    loss    with the heads that the loss alone needs
    beyond  whether the voxels around the block are wanted of what the head reads
    """
    return _Forward(network, merges, last, loss=loss, beyond=beyond).run()


def needs_ghosts(network: Network, name: str, merges: frozenset[int], *, beyond: bool = False) -> bool:
    """Whether a node's output is read with the voxels around the block, on the process grid of its own stage."""
    return any(_reads_ghosts(network, node, merges, beyond) for node in network.readers[name])


def _reads_ghosts(network: Network, node: Node, merges: frozenset[int], beyond: bool) -> bool:
    match node:
        case Convolution():
            return max(node.kernel) > 1
        case Normalization():
            return needs_ghosts(network, node.name, merges, beyond=beyond)
        case UpConvolution() | Interpolation():
            return node.stage + 1 not in merges and _is_made_from_ghosts(network, node, merges)
        case Head():
            return beyond and node is network.head
    return False


def _is_made_from_ghosts(network: Network, node: UpConvolution | Interpolation, merges: frozenset[int]) -> bool:
    """Whether a node's output, or its voxels beyond the block where they are read, are made from its input's ghosts."""
    beside = isinstance(node, Interpolation) and max(node.reads_beside) > 0
    return beside or needs_ghosts(network, node.name, merges)


class _Forward:
    """Goes through the nodes; `outputs` is how each node's output is read."""

    def __init__(self, network: Network, merges: frozenset[int], last: int, *, loss: bool, beyond: bool) -> None:
        self.network, self.merges, self.last = network, merges, last
        self.loss, self.beyond = loss, beyond
        self.steps: list[Step] = []
        self.outputs: dict[str, Source] = {IMAGE: View(Tensor(IMAGE, 0, 0, network.in_channels))}

    def run(self) -> list[Step]:
        for node in self.network.nodes:
            match node:
                case Convolution() if self._grid_of(node) <= self.last:
                    self._convolution(node)
                case Normalization():
                    self._normalization(node)
                case MaxPool() if node.stage - 1 <= self.last:
                    self._pooled(node)
                case AveragePool() if node.stage - 1 <= self.last:
                    self._averaged(node)
                case UpConvolution() | Interpolation() if node.stage <= self.last:
                    self._lifted(node)
                case Addition() if node.stage <= self.last:
                    self._addition(node)
                case Head() if self.loss or not node.training:
                    self._head(node)
        return self.steps

    def _emit(self, op: Op, label: str) -> None:
        self.steps.append(Step(op, label))

    def _head(self, node: Head) -> None:
        """Logits; where they lie on a coarser process grid, what they are compared with goes from grid to grid."""
        name = f"target of {node.name}"
        for stage in sorted(self.merges):
            if stage <= min(node.stage, self.last + 1):
                source = Tensor(name, node.stage, stage - 1, 1)
                target = replace(source, grid=stage) if stage <= self.last else None
                self._emit(GatherTarget(node, stage, source, target), f"{node.name}, gathered")
        if node.stage <= self.last:
            self._emit(Classify(node, self._view(node.reads[0])), node.name)

    def _view(self, name: str) -> View:
        view = self.outputs[name]
        assert isinstance(view, View), f"{name} is never whole"
        return view

    def _grid_of(self, node: Convolution) -> int:
        """The stage on whose process grid a convolution is computed: that of what it reads, where it has strides."""
        return self.network.stage_of(node.reads[0]) if max(node.stride) > 1 else node.stage

    def _convolution(self, node: Convolution) -> None:
        grid = self._grid_of(node) if node.stage in self.merges else node.stage
        output, pool = Tensor(node.name, node.stage, grid, node.channels), self._pool_of(node)
        pooled = None if pool is None else Tensor(pool.name, pool.stage, node.stage, node.channels)
        sources = tuple(self.outputs[name] for name in node.reads)
        # What is gathered before its norm takes statistics has none of bricks; nor where it is not, for the same bits.
        norm = None if max(node.stride) > 1 and self._is_read_raw(node) else self._norm_of(node)
        self._emit(Convolve(node, sources, output, norm, pooled, pool), node.name)
        if pool is not None and pooled is not None and pool.stage not in self.merges:
            self._exchange(pool.name, pooled, node.name)
        if grid == node.stage:
            self._exchange(node.name, output, node.name)
        elif self._is_read_raw(node):
            target = self._gathered(node.name, output)
            if target is None:
                return
            output = target
        self.outputs[node.name] = View(output)

    def _is_read_raw(self, node: Node) -> bool:
        """Whether a node's output is read other than through a norm or an activation."""
        return any(not isinstance(reader, Normalization) for reader in self.network.readers[node.name])

    def _exchange(self, name: str, tensor: Tensor, label: str) -> None:
        if needs_ghosts(self.network, name, self.merges, beyond=self.beyond):
            self._emit(Exchange(tensor), label)

    def _norm_of(self, node: Node) -> Normalization | None:
        """The norm that takes statistics of a node's output."""
        reading = (reader for reader in self.network.readers[node.name] if isinstance(reader, Normalization))
        return next((norm for norm in reading if norm.norm != "none"), None)

    def _pool_of(self, node: Node) -> MaxPool | None:
        """The pooling that reads a node's output, and can be done while that is computed."""
        for norm in self.network.readers[node.name]:
            for reader in self.network.readers[norm.name]:
                if isinstance(norm, Normalization) and isinstance(reader, MaxPool) and norm.keeps_order:
                    return reader
        return None

    def _normalization(self, node: Normalization) -> None:
        source = self.outputs.get(node.reads[0])
        if source is None:
            if node.dropping:
                self._emit(SitOut((node,)), node.reads[0])
            return
        view = View(source.tensor, node)
        self._emit(Normalize(view), view.tensor.name)
        if view.tensor.grid < node.stage:
            target = self._gathered(node.name, view.tensor)
            if target is None:
                return
            view = View(target, node)
        self.outputs[node.name] = view

    def _gathered(self, name: str, tensor: Tensor) -> Tensor | None:
        """A tensor on the coarser grid of its stage, where this rank takes part in that."""
        stage = tensor.stage
        label, target = f"level {stage}, gathered", None
        if stage <= self.last:
            target = Tensor(f"gathered {tensor.name}", stage, stage, tensor.channels)
        self._emit(Gather(stage, tensor, target), label)
        if target is not None:
            self._exchange(name, target, self.network.made_from(name))
        return target

    def _pooled(self, node: MaxPool) -> None:
        """What is pooled, mostly made with what it is pooled from, goes to the ranks that take part in its stage."""
        norm = self.network.by_name[node.reads[0]]
        assert isinstance(norm, Normalization)
        tensor = Tensor(node.name, node.stage, node.stage - 1, node.channels)
        if not (isinstance(self.network.by_name[norm.reads[0]], Convolution) and norm.keeps_order):
            self._emit(Pool(node, self._view(norm.name), tensor), norm.reads[0])
            if node.stage not in self.merges:
                self._exchange(node.name, tensor, norm.reads[0])
        target = self._gathered(node.name, tensor) if node.stage in self.merges else tensor
        if target is not None:
            self.outputs[node.name] = View(target, norm)

    def _averaged(self, node: AveragePool) -> None:
        """What is averaged, on the process grid of what it is made from, goes to those who take part in its stage."""
        tensor, label = Tensor(node.name, node.stage, node.stage - 1, node.channels), node.name
        self._emit(Average(node, self._view(node.reads[0]), tensor), label)
        if node.stage not in self.merges:
            self._exchange(node.name, tensor, label)
        target = self._gathered(node.name, tensor) if node.stage in self.merges else tensor
        if target is not None:
            self.outputs[node.name] = View(target)

    def _lifted(self, node: UpConvolution | Interpolation) -> None:
        read = self.network.by_name[node.reads[0]]
        below = self.outputs.get(read.name)
        stage = node.stage + 1
        if stage in self.merges:
            label = f"level {stage}, scattered"
            through = read if isinstance(read, Normalization) else None
            target = View(Tensor(f"spread {stage}", stage, node.stage, read.channels), through)
            assert below is None or isinstance(below, View)
            self._emit(Scatter(stage, below, target), label)
            if _is_made_from_ghosts(self.network, node, self.merges):
                self._emit(Exchange(target.tensor), self.network.made_from(node.reads[0]))
            below = target
        assert isinstance(below, View)
        lifted = Lifted(below, node)
        if all(isinstance(reader, Convolution) for reader in self.network.readers[node.name]):
            self.outputs[node.name] = lifted
            return
        output = lifted.whole
        whole = UpConvolve(node, below, output) if isinstance(node, UpConvolution) else Interpolate(node, below, output)
        self._emit(whole, node.name)
        self._exchange(node.name, output, node.name)
        self.outputs[node.name] = View(output)

    def _addition(self, node: Addition) -> None:
        output = Tensor(node.name, node.stage, node.stage, node.channels)
        self._emit(Add(node, tuple(self._view(name) for name in node.reads), output), node.name)
        self._exchange(node.name, output, node.name)
        self.outputs[node.name] = View(output)
