"""How a run sees its cases: in which voxel order, at which spacing, and what of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from volseg.distributed.grid import ProcessGrid
from volseg.geometry import PerAxis
from volseg.volumes.canonical import in_order_of
from volseg.volumes.checks import check_same_grid
from volseg.volumes.dataset import Case, Dataset
from volseg.volumes.imported_scan import ImportedView, lay_out_imported
from volseg.volumes.resampling import Spacing, resampled
from volseg.volumes.scan import Scan, lay_out, open_channels, seen_space
from volseg.volumes.volume import Volume


@dataclass(frozen=True)
class Sight:
    """How the cases of a data set are seen.

    spacing  mm (canonical D, H, W) at which the network sees them; None: their own
    views    of the cases, by name, where they are seen as another tool reads them, normalised; else empty
    """

    dataset: Dataset
    spacing: Spacing | None
    views: Mapping[str, ImportedView]

    def of(self, case: Case) -> tuple[Sequence[Volume], Callable[[Volume], Volume]]:
        """Images on the grid, and in the order, in which the network sees them, before any halving; and what makes
        labels of the case such."""
        view = self.views.get(case.name)
        if view is not None:
            return view.channels, view.labels
        channels = open_channels(case.images)
        space = seen_space(channels[0], self.spacing)

        def see(labels: Volume) -> Volume:
            labels = in_order_of(labels, channels[0].space)
            check_same_grid(channels[0], labels)
            return resampled(labels, space, "labels")

        return [resampled(channel, space, "linear") for channel in channels], see

    def on_own_grid(self, case: Case, grid: ProcessGrid, multiple: PerAxis) -> tuple[Scan, Volume] | None:
        """The case laid out as `segment` lays out a scan, and its labels on the scan's own grid, in the network's order
        and cropped as the network sees it.

        None where the network sees that very grid.
        """
        view = self.views.get(case.name)
        if view is not None:
            own = view.own_labels(self.dataset.open_labels(case))
            return None if view.back is None else (lay_out_imported(view, grid, multiple), own)
        if self.spacing is None:
            return None
        channels = open_channels(case.images)
        scan = lay_out(channels, grid, multiple, self.spacing)
        if scan.back is None:
            return None
        return scan, in_order_of(self.dataset.open_labels(case), scan.mask_space)
