"""The cases of a run that begins with an imported model, seen as the tool that trained it reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from volseg.distributed.communicator import Communicator
from volseg.events import Listener, Progress
from volseg.volumes.dataset import Case, Dataset
from volseg.volumes.imported_scan import ImportedView, Manner, view_as_imported
from volseg.volumes.intensity import ChannelScheme
from volseg.volumes.reading_order import from_canonical_order, order_of
from volseg.volumes.resampling import Spacing
from volseg.volumes.scan import open_channels
from volseg.volumes.volume import Space, Volume

SIDES = 2
"""The canonical axis along which the patient's left and right lie."""


def grids_along_network(dataset: Dataset, manner: Manner) -> dict[str, Space]:
    """The grid of every case, by name, in the voxel order that a model's spacing is of; only headers are read."""
    spaces = {}
    for case in dataset.cases:
        space = case.images[0].open().space
        order = order_of(space, manner.stored, manner.transpose if manner.stored else (0, 1, 2))
        spaces[case.name] = order.canonical_space(space)
    return spaces


def axes_of_sides(dataset: Dataset, manner: Manner) -> frozenset[int]:
    """The network's axes along which the patient's left and right lie in some case."""
    spaces = [case.images[0].open().space for case in dataset.cases]
    orders = [from_canonical_order(space, order_of(space, manner.stored, manner.transpose)) for space in spaces]
    return frozenset(order.axes.index(SIDES) for order in orders)


def views_of_cases(
    cases: Sequence[Case], manner: Manner, spacing: Spacing | None, schemes: Sequence[ChannelScheme],
    communicator: Communicator, listen: Listener,
) -> dict[str, ImportedView]:  # fmt: skip
    """What the network sees of each case, by name. Collective: all ranks share the reading of each.

    spacing  mm, as a model's card has it; None: each case's own

    Raises VolumeError, on all ranks, where a case cannot be read.
    """
    views = {}
    for number, case in enumerate(cases, start=1):
        with communicator.together():
            channels = open_channels(case.images)
        views[case.name] = view_as_imported(channels, manner, manner.on_network_axes(spacing), schemes, communicator)
        for channel in channels:  # a data set of many cases would run out of file descriptors
            channel.close()
        listen(Progress("what the network sees of the cases", number, len(cases), "cases"))
    return views


def labels_of_resampled(
    dataset: Dataset, cases: Sequence[Case], views: Mapping[str, ImportedView]
) -> list[tuple[Case, Volume, str]]:
    """The cases that are resampled, with their labels as the network sees them, and the --spacing that keeps them."""
    return [
        (case, views[case.name].labels(dataset.open_labels(case)), "own")
        for case in cases
        if case.label is not None and views[case.name].there is not None
    ]
