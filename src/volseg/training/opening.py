"""What a run reads before anything is built: the data set, who is held out, and the grids on which cases are seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from volseg.config import Config
from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError
from volseg.events import Caution, Listener, Message
from volseg.geometry import Triple
from volseg.training.as_imported import axes_of_sides, grids_along_network, views_of_cases
from volseg.training.beginning import Beginning
from volseg.training.cases import (
    Split,
    canonical_spaces,
    fingerprint_of_run,
    median_spacing,
    spacing_to_train_at,
    split_cases,
)
from volseg.training.job import TrainingJob
from volseg.training.network import with_network
from volseg.training.run_folder import check_run_folder
from volseg.training.sides import SIDES, without_mirrored_sides
from volseg.training.starting import begin
from volseg.volumes.dataset import Case, Dataset, read_dataset
from volseg.volumes.fingerprint import Fingerprint
from volseg.volumes.imported_scan import ImportedView, Manner
from volseg.volumes.resampling import Spacing
from volseg.volumes.scan import space_at
from volseg.volumes.volume import Space


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A run whose data set is open and whose configuration is settled.

    config       with the channels and classes of the data set, and the network that suits it
    begun        what the run begins with
    spaces       grid of every case of the data set, canonical order, by name
    spacing      mm, as the model's card has it (`ModelCard.spacing`), at which the network sees cases; None: their own
    median       that spacing, or where there is none, the median of the training cases' own
    shapes       (D, H, W) voxels of every case of the run as the network sees it, by name
    why_network  why kernels and strides are what they are; empty where nothing was chosen
    views        of the run's cases, by name, where they are seen as another tool reads them; else empty
    fingerprint  of the data set, where it had to be taken for that
    """

    dataset: Dataset
    config: Config
    begun: Beginning
    split: Split
    spaces: Mapping[str, Space]
    spacing: Spacing | None
    median: Spacing
    shapes: Mapping[str, Triple]
    why_network: str
    views: Mapping[str, ImportedView]
    fingerprint: Fingerprint | None

    @property
    def cases(self) -> list[Case]:
        """Of the run, those to train on first."""
        return [*self.split.training, *self.split.validation]

    @property
    def resampled(self) -> int:
        """Cases of the data set that are seen at another spacing than their own."""
        if self.views:
            return sum(view.there is not None for view in self.views.values())
        if self.spacing is None:
            return 0
        return sum(space_at(space, self.spacing) is not space for space in self.spaces.values())


def open_run(job: TrainingJob, communicator: Communicator, listen: Listener) -> Opened:
    """Read the data set's description and the headers of its images, and settle the configuration. Collective.

    Raises VolsegError, on all ranks, where data set, configuration or run folder cannot be used.
    """
    dataset = communicator.on_root(lambda: read_dataset(job.source))
    for note in dataset.notes:
        listen(Message(note))
    for warning in dataset.warnings:
        listen(Caution(warning))
    if dataset.regions and job.config.training.class_weights:
        raise ConfigError(
            f"training.class_weights: {dataset.folder} has regions, whose loss has no weights; leave it out"
        )
    communicator.on_root(lambda: check_run_folder(job))
    begun = begin(job, dataset, communicator, listen)
    manner = begun.manner
    sides = SIDES if manner is None else axes_of_sides(dataset, manner)
    config, of_sides = without_mirrored_sides(begun.config, dataset.outputs, job, sides)
    config.check()
    if of_sides is not None:
        listen(Caution(of_sides))
    split = split_cases(dataset, config.training)
    if config.training.patience and not split.validation:
        raise ConfigError(
            f"training.patience = {config.training.patience}, but no case is held out to validate with; hold cases out "
            "with --validation 1, or leave --patience out"
        )
    spaces = canonical_spaces(dataset)
    along_network = spaces if manner is None else grids_along_network(dataset, manner)
    own = [along_network[case.name] for case in split.training]
    spacing = spacing_to_train_at(config.data, own)
    median = spacing or median_spacing(own)
    seen = _Seen(views={}, fingerprint=None)
    shapes = {name: space_at(space, spacing).shape for name, space in spaces.items()}
    if manner is not None:
        seen = _as_read_by(manner, job, dataset, begun, split, spaces, spacing, communicator, listen)
        shapes = {name: view.channels[0].shape for name, view in seen.views.items()}
    config, why_network = with_network(job, config, median, [shapes[case.name] for case in split.training])
    if why_network:
        listen(Message(why_network))
    config.check()
    return Opened(
        dataset=dataset, config=config, begun=replace(begun, config=config), split=split,
        spaces=spaces, spacing=spacing, median=median, shapes=shapes, why_network=why_network, views=seen.views,
        fingerprint=seen.fingerprint,
    )  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    views: Mapping[str, ImportedView]
    fingerprint: Fingerprint | None


def _as_read_by(
    manner: Manner, job: TrainingJob, dataset: Dataset, begun: Beginning, split: Split, spaces: Mapping[str, Space],
    spacing: Spacing | None, communicator: Communicator, listen: Listener,
) -> _Seen:  # fmt: skip
    """The run's cases as another tool reads them. Collective.

    Images are normalised before they are resampled, so it has to be known how, which a channel that is new to the
    network has from the fingerprint of the data set.
    """
    fingerprint = fingerprint_of_run(job, dataset, spaces, communicator, listen)
    schemes = begun.schemes_or(fingerprint.schemes())
    cases = [*split.training, *split.validation]
    return _Seen(views_of_cases(cases, manner, spacing, schemes, communicator, listen), fingerprint)
