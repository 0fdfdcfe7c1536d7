"""How fast this machine is: the program itself on small volumes, each operation timed, and messages between ranks.

Every rank trains and segments volumes of its own at the same time, so that costs are those of a machine at work. The
operations of `planning.operations` carry the names under which the meter counts; so each measured time has its shape.
"""

from __future__ import annotations

import datetime
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path

import numpy as np
import torch

from volseg import __version__
from volseg.config import Config, ModelConfig, TrainingConfig
from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.distributed.meter import Meter
from volseg.distributed.placement import available_cores, ranks_on_this_machine
from volseg.errors import ConfigError
from volseg.events import Caution, Listener, Message, Progress, ignore
from volseg.geometry import Triple
from volseg.machine import physical_memory, processor_name
from volseg.networks.architectures import described
from volseg.nn.kernels import winograd
from volseg.nn.kernels.speed import CHANNELS, SIDE, measure_reference
from volseg.partition.layout import Layout
from volseg.planning.operations import Family, Operation
from volseg.planning.profile import BETWEEN_MACHINES, Cost, Network, Profile, Setting, read_profile
from volseg.planning.work import segmenting_work, training_work
from volseg.precision import FLOAT32, Precision
from volseg.program.kinds import Kind
from volseg.segmentation.inference import segment_block
from volseg.segmentation.opening import open_scan
from volseg.study.launching import Launcher, run_volseg
from volseg.training.job import TrainingJob
from volseg.training.preparing import prepare
from volseg.training.setup import Setup
from volseg.training.step import training_step
from volseg.volumes.generation import Recipe, generate_dataset

_BY_LAYER = (Kind.CONVOLUTION, Kind.UP, Kind.NORM, Kind.POOLING)
"""Kinds whose times are told apart by layer; of the others there is one operation."""

_SECONDS, _FEWEST, _MOST = 0.8, 5, 16
"""Each network is stepped so long, but so often at least and at most."""


@dataclass(frozen=True)
class Case:
    """A network and a volume to measure."""

    base_channels: int
    levels: int
    side: int

    @property
    def model(self) -> ModelConfig:
        """With one image channel and two classes of objects, as `volseg generate` makes them."""
        return ModelConfig(in_channels=1, classes=3, base_channels=self.base_channels, levels=self.levels)


CASES = (
    Case(8, 3, 16), Case(8, 3, 48), Case(8, 3, 96), Case(16, 3, 16), Case(16, 4, 32), Case(16, 3, 64),
    Case(16, 3, 96), Case(32, 3, 16), Case(32, 3, 32), Case(32, 3, 64), Case(64, 3, 16), Case(64, 3, 32),
)  # fmt: skip
"""Blocks from a voxel a side at the deepest level to more than a cache holds, 8 to 320 channels."""


def calibrate(
    communicator: Communicator, listen: Listener = ignore, cases: Sequence[Case] = CASES,
    precision: Precision = FLOAT32,
) -> Profile:  # fmt: skip
    """Measure this machine as these ranks use it: one setting, and with several ranks their messages. Collective.

    precision  in which tensors are stored

    Raises ConfigError where a processor lacks the instructions of the kernels, which are what is measured.
    """
    if not all(communicator.gather_all(winograd.available())):
        raise ConfigError("this processor lacks the instructions of the fast kernels: there is nothing to measure")
    per_machine = ranks_on_this_machine(communicator)
    costs: dict[tuple[Family, int, int, int], list[float]] = {}
    for number, case in enumerate(cases):
        listen(Progress("calibrate", number, len(cases), "networks", {"now": f"{case.base_channels} x {case.side}³"}))
        for cost in measure_case(case, communicator, precision):
            key = cost.family, cost.inputs, cost.outputs, cost.voxels
            costs.setdefault(key, []).append(cost.seconds)
    listen(Progress("calibrate", len(cases), len(cases), "networks"))
    for channels in CHANNELS:
        communicator.barrier()
        alone = statistics.fmean(communicator.gather_all(measure_reference(channels)))
        costs[Family.REFERENCE, channels, channels, SIDE**3] = [alone]
    found = tuple(
        Cost(family, inputs, outputs, voxels, statistics.median(times))
        for (family, inputs, outputs, voxels), times in costs.items()
    )
    setting = Setting(per_machine, torch.get_num_threads(), found, precision)
    everyone, packing = _bandwidths(communicator, per_machine)
    within, between = measure_networks(communicator)
    for where, network in (("on one machine", within), ("between machines", between)):
        if network is not None:
            speed = network.bytes_per_second / 1e9
            listen(Message(f"messages {where}: {network.latency * 1e6:.1f} µs, {speed:.2f} GB/s"))
    return Profile(
        machine=processor_name(), cores=os.cpu_count() or 1, memory=physical_memory(), memory_bandwidth=everyone,
        copy_bandwidth=packing, settings=(setting,), within=within or UNMEASURED_WITHIN,
        between=between or BETWEEN_MACHINES, volseg=__version__, date=datetime.date.today().isoformat(),
    )  # fmt: skip


UNMEASURED_WITHIN = Network(4e-6, 2e9, 5e-6, measured=False)
"""Messages on one machine where a single rank was measured."""


def merge(profiles: Sequence[Profile]) -> Profile:
    """One profile of several of the same machine: later settings and messages before earlier ones."""
    last = profiles[-1]
    settings = {(s.precision, s.ranks, s.threads): s for profile in profiles for s in profile.settings}
    within = next((p.within for p in reversed(profiles) if p.within.measured), last.within)
    between = next((p.between for p in reversed(profiles) if p.between.measured), last.between)
    alone = max(p.copy_bandwidth for p in profiles)
    together = max(p.memory_bandwidth for p in profiles)
    return Profile(
        machine=last.machine, cores=last.cores, memory=last.memory, memory_bandwidth=together, copy_bandwidth=alone,
        settings=tuple(settings[k] for k in sorted(settings)), within=within, between=between, volseg=last.volseg,
        date=last.date,
    )  # fmt: skip


def known_profiles(path: Path, now: Profile) -> list[Profile]:
    """What the file at `path` has of the same machine and version: none, or one."""
    try:
        before = read_profile(path)
    except ConfigError:  # none there, or of another version
        return []
    same = (before.machine, before.cores, before.volseg) == (now.machine, now.cores, now.volseg)
    return [before] if same else []


def measure_settings(
    launcher: Launcher | None, listen: Listener = ignore, precision: Precision = FLOAT32
) -> list[Profile]:
    """This machine as one rank of one thread, one rank on all cores, and a rank a core; each a job of its own."""
    cores = len(available_cores())
    settings = [(1, 1), (1, cores), (cores, 1)] if cores > 1 else [(1, 1)]
    if launcher is None and cores > 1:
        listen(Caution("no mpirun found: messages between ranks are not measured"))
        settings.pop()
    found = []
    with tempfile.TemporaryDirectory(prefix="volseg-calibrate-") as name:
        for number, (ranks, threads) in enumerate(settings):
            plural = "s" if ranks > 1 else ""
            figures = {"now": f"{ranks} rank{plural} of {threads}"}
            listen(Progress("calibrate", number, len(settings), "settings", figures))
            output = Path(name) / f"{number}.json"
            options = ["calibrate", "--setting-only", "--precision", precision, "-o", output]
            run_volseg(Path(name), *options, ranks=ranks, threads=threads, launcher=launcher)
            found.append(read_profile(output))
    listen(Progress("calibrate", len(settings), len(settings), "settings"))
    return found


def measure_case(case: Case, communicator: Communicator, precision: Precision = FLOAT32) -> list[Cost]:
    """Times of all operations of one network on one volume, the mean over the ranks. Collective."""
    shape: Triple = (case.side,) * 3
    layouts = [Layout.even(shape, (1, 1, 1), case.model.multiple).coarser(factor) for factor in case.model.factors]
    with tempfile.TemporaryDirectory(prefix="volseg-calibrate-") as name:
        folder = Path(name)
        alone = SerialCommunicator()
        generate_dataset(folder / "data", Recipe(shape=shape, cases=1), alone)
        config = Config(case.model, TrainingConfig(epochs=1, validation=0, precision=precision.value))
        setup = prepare(TrainingJob(folder / "data", folder / "run", config), alone, ignore)
        training = _steps(lambda: _train(setup), alone.meter, communicator)
        segmenting = _steps(_segmenter(setup, alone, precision), alone.meter, communicator)
    work = training_work(described(case.model), layouts)
    forward = segmenting_work(described(case.model), layouts)
    found = _joined(work.operations, training) + _joined(forward.operations, segmenting)
    shared = communicator.gather_all([cost.seconds for cost in found])
    means = [statistics.fmean(times) for times in zip(*shared, strict=True)]
    return [
        Cost(cost.family, cost.inputs, cost.outputs, cost.voxels, seconds)
        for cost, seconds in zip(found, means, strict=True)
        if seconds > 0
    ]


def _train(setup: Setup) -> None:
    training_step(setup, setup.cases[:1], 0)


def _segmenter(setup: Setup, alone: Communicator, precision: Precision) -> Callable[[], None]:
    scan, grid = open_scan(setup.cases[0].images[0].path, setup.card, "auto", alone, "native")

    def segment() -> None:
        segment_block(setup.model, scan, setup.card, grid, precision=precision)

    return segment


Taken = dict[tuple[str, Kind], float]


def _steps(step: Callable[[], None], meter: Meter, communicator: Communicator) -> Taken:
    """Seconds by layer and kind, after a step that does not count. All ranks step together. Collective.

    Medians of the faster half of the steps: a machine that does something else for a while makes the others slower.
    """
    step()
    taken: list[Taken] = []
    begin = time.perf_counter()
    while len(taken) < _MOST:
        communicator.barrier()
        meter.reset()
        step()
        meter.by_kind()
        taken.append(dict(meter.taken[""]))
        if communicator.on_root(lambda: len(taken) >= _FEWEST and time.perf_counter() - begin > _SECONDS):
            break
    fast = sorted(taken, key=lambda one: sum(one.values()))[: (len(taken) + 1) // 2]
    keys = {key for one in fast for key in one}
    return {key: statistics.median(one.get(key, 0.0) for one in fast) for key in keys}


def _joined(operations: Iterable[Operation], taken: Taken) -> list[Cost]:
    """The operations with their times; those that layers do not tell apart have that of their kind."""
    found, by_kind = [], dict.fromkeys(Kind, 0.0)
    for (_, kind), seconds in taken.items():
        by_kind[kind] += seconds
    for op in operations:
        seconds = taken.get((op.layer, op.kind), 0.0) if op.kind in _BY_LAYER else by_kind[op.kind]
        found.append(Cost(op.family, op.inputs, op.outputs, op.voxels, seconds))
    return found


def measure_networks(communicator: Communicator) -> tuple[Network | None, Network | None]:
    """Messages on one machine, and between machines; None of what there is none of here. Collective.

    While all ranks send to a partner: a neighbour on the machine, or the rank of the same number on the next one.
    Between machines bytes are those of a machine's ranks together.
    """
    names = communicator.gather_all(socket.gethostname())
    machines = sorted(set(names), key=names.index)
    place = names[: communicator.rank].count(socket.gethostname())
    local = communicator.split(machines.index(socket.gethostname()), communicator.rank)
    on_each = min(names.count(name) for name in machines)
    within, round_here = None, 0.0
    if on_each > 1:
        latency, speed = _messages(local, communicator)
        round_here = _small_sums(local, communicator)
        within = Network(latency, speed, round_here / log2(on_each))
    if len(machines) < 2:
        return within, None
    latency, speed = _messages(communicator.split(place, communicator.rank), communicator)
    rounds = max(_small_sums(communicator, communicator) - round_here, latency)
    return within, Network(latency, speed * on_each, rounds / log2(len(machines)))


def _messages(some: Communicator, everyone: Communicator) -> tuple[float, float]:
    """Latency, and bytes a second of large messages, while ranks of `some` exchange in pairs. Collective."""
    partner, times = some.rank ^ 1, []
    for count, repeats in ((1, 200), (2**20, 30)):
        out, back = np.zeros(count, np.float32), np.empty(count, np.float32)

        def exchange(out: np.ndarray = out, back: np.ndarray = back) -> None:
            if partner < some.size:
                some.send_receive([(partner, out)], [(partner, back)])

        times.append((out.nbytes, _median_of_many(exchange, everyone, repeats)))
    (_, latency), (size, longest) = times
    return latency, size / max(longest - latency, 1e-9)


def _small_sums(some: Communicator, everyone: Communicator) -> float:
    """Seconds of a sum of 64 numbers over the ranks of `some`. Collective."""
    values = np.zeros(64)
    return _median_of_many(lambda: some.reduce_all_in_place(values), everyone, 200)


def _median_of_many(call: Callable[[], None], communicator: Communicator, repeats: int) -> float:
    """Median seconds of a call that all ranks make, on the slowest of them. Collective."""
    communicator.barrier()
    taken: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    medians: list[float] = communicator.gather_all(statistics.median(taken))
    return max(medians)


def _bandwidths(communicator: Communicator, per_machine: int) -> tuple[float, float]:
    """Bytes read and written a second: of all ranks of a machine copying, and of one packing faces. Collective."""
    source, target = torch.zeros(2**24), torch.empty(2**24)
    copying = _median_of_many(lambda: _ignore(target.copy_(source)), communicator, 5)
    blocks = [torch.zeros(96, 96, 96, 16) for _ in range(4)]  # together more than a cache holds
    faces = [blocks[0].narrow(axis, 0, 1).contiguous() for axis in range(3)]

    def pack() -> None:
        for block in blocks:
            for axis, face in enumerate(faces):
                face.copy_(block.narrow(axis, 0, 1))

    packing = _median_of_many(pack, communicator, 10)
    size = len(blocks) * sum(face.nbytes for face in faces)
    return per_machine * 2 * source.nbytes / copying, 2 * size / packing


def _ignore(_: object) -> None:
    pass
