"""One step of the optimizer: the mean gradient of a batch of cases, which the replicas share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from volseg.models.fused import FusedNetwork
from volseg.nn.gradients import clip_gradients, sum_gradients
from volseg.nn.losses import DiceOfBatch
from volseg.program.kinds import Kind
from volseg.training.data import Sample
from volseg.training.setup import Setup
from volseg.volumes.dataset import Case


@dataclass(frozen=True)
class StepFigures:
    """Of a batch before its step: mean loss, mean soft foreground Dice, voxels of the padded volumes together.

    dice    over the classes that a case or its prediction holds, and the cases that hold any; None where none does
    faulty  cases with a loss that is not finite; all of them where only gradients are not
    """

    loss: float
    dice: float | None
    voxels: int
    faulty: tuple[Case, ...] = ()


def training_step(setup: Setup, cases: Sequence[Case], step: int) -> StepFigures:
    """One step on a batch, each replica with its share of the cases, one after the other. Collective.

    Where loss or gradients are not finite no step is made, and the loss returned is not finite; on all ranks alike.
    """
    resolution, settings, parameters = setup.resolution(step), setup.config.training, list(setup.model.parameters())
    replicas, twin = resolution.replicas, resolution.twin
    meter = replicas.world.meter
    scores = np.zeros((len(cases), 4))  # loss, Dice, whether there is one, and voxels of each case
    running = RunningStatistics(setup.model)
    twin.train()
    setup.optimizer.zero_grad(set_to_none=True)
    batch = _dice_of_batch(setup, cases, step, running) if settings.batch_dice and len(cases) > 1 else None
    for place, case in replicas.share(cases):
        with meter.doing(Kind.FILES):
            sample = resolution.samples.load(case, step, place)
        with running.of_one_case(), random_state(settings.seed, step, place):
            loss, soft = twin.loss(*on_device(twin, sample), batch, setup.dataset.unknown_in(case))
        (loss / len(cases)).backward()
        soft = soft if twin.regions else soft[1:]
        there = soft[~soft.isnan()]
        mean = float(there.sum()) / max(1, len(there))
        scores[place] = float(loss.detach()), mean, len(there) > 0, sample.voxels
    with meter.during("gradients of the weights"), meter.doing(Kind.OPTIMIZER):
        sum_gradients(parameters, replicas.world)
        scores = replicas.across.reduce_all(scores)  # one replica has a case, the others zeros: any order, same bits
        running.leave_mean(replicas.across.reduce_all(running.total), len(cases))
    mean_loss, measured = float(scores[:, 0].mean()), scores[:, 2].sum()
    mean_dice = float(scores[:, 1].sum() / measured) if measured else None
    finite = np.isfinite(scores[:, 0])
    if not finite.all() or not all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None):
        faulty = [case for case, good in zip(cases, finite, strict=True) if not good]
        return StepFigures(float("nan"), float("nan"), 0, tuple(faulty or cases))
    with meter.doing(Kind.OPTIMIZER):
        if settings.clip > 0:
            clip_gradients(parameters, settings.clip, replicas.world)
        setup.optimizer.step()
        setup.averaged.update(step)
    return StepFigures(mean_loss, mean_dice, int(scores[:, 3].sum()))


def on_device(twin: FusedNetwork, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and target of a sample, where the network's tensors lie."""
    return sample.image.to(twin.device), sample.target.to(twin.device)


def _dice_of_batch(
    setup: Setup, cases: Sequence[Case], step: int, running: RunningStatistics
) -> list[DiceOfBatch]:  # fmt: skip
    """The Dice of all cases together, at each level with a head, from a forward of each. Collective.

    The gradient of each case needs the sums over all of them before its backward, and the activations of one case are
    all that fits into memory. Sums are added in the order of the cases, whoever had them.
    """
    resolution, settings = setup.resolution(step), setup.config.training
    replicas, twin, meter = resolution.replicas, resolution.twin, resolution.replicas.world.meter
    levels, classes = len(twin.supervised), twin.network.classes
    overlaps = np.zeros((len(cases), levels, 3 * classes))
    for place, case in replicas.share(cases):
        with meter.doing(Kind.FILES):
            sample = resolution.samples.load(case, step, place)
        unknown = setup.dataset.unknown_in(case)
        with running.undone(), random_state(settings.seed, step, place):
            overlaps[place] = torch.stack(twin.overlaps(*on_device(twin, sample), unknown)).numpy()
    total = torch.from_numpy(replicas.across.reduce_all(overlaps).sum(0))
    return [DiceOfBatch(some, len(cases)) for some in total]


class RunningStatistics:
    """The buffers of a model, which batch norm changes with every forward, over a batch that replicas share.

    Each case begins with what they were before the step, and the step leaves the mean of what the cases made of them;
    so it does not matter who had which case, and when.

    total  of what this replica's cases made of them, float64
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        self.total = np.zeros(sum(buffer.numel() for buffer in self._buffers))

    @contextmanager
    def of_one_case(self) -> Iterator[None]:
        """The forward of a case."""
        yield
        if self._buffers:
            self.total += torch.cat([buffer.double().reshape(-1).cpu() for buffer in self._buffers]).numpy()
        self._put(self._before)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """A forward that leaves nothing behind."""
        yield
        self._put(self._before)

    def leave_mean(self, total: np.ndarray, cases: int) -> None:
        """Let the buffers be the mean over all cases, from the sum over the replicas."""
        parts = torch.from_numpy(total / cases).split([buffer.numel() for buffer in self._buffers])
        self._put([part.view(buffer.shape) for part, buffer in zip(parts, self._buffers, strict=True)])

    def _put(self, values: Sequence[torch.Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)


@contextmanager
def random_state(seed: int, step: int, place: int) -> Iterator[None]:
    """Random numbers for the forward of the case at `place` of a step's batch.

    They are made from its numbers alone, whichever replica has it and whatever was drawn before; the process's own are
    left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        own = np.random.default_rng([seed, step, place]).integers(2**62)
        torch.default_generator.manual_seed(int(own))
        yield
