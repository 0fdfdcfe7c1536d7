"""What `segment` is asked to do: which files it reads and writes, and whether it may."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from volseg.distributed.trace import check_trace_path
from volseg.errors import VolumeError
from volseg.models.stored import ModelCard
from volseg.precision import Precision
from volseg.program.schedule import Schedule
from volseg.segmentation.postprocessing import Cleaning
from volseg.segmentation.windows.options import WindowOptions
from volseg.volumes.dataset import image_name
from volseg.volumes.file_names import ending_of, stem_of
from volseg.volumes.formats.registry import LISTED, MASKS, SUFFIXES, WRITTEN, file_of, writer_of
from volseg.volumes.formats.zarr import is_zarr_store
from volseg.volumes.image_file import ImageFile, channels_of_file, count_channels
from volseg.volumes.label_table import LabelTable
from volseg.volumes.mask_names import alone, beside, split_paths
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.output import Content
from volseg.volumes.resampling import Spacing
from volseg.volumes.scan import Scan
from volseg.volumes.writing import Intended, check_output, check_small_output, rehearse, volume_suffix
from volseg.volumes.zarr.label_image import store_of

VOLUMES = ("mask", "probabilities")
OPTIONS = {"report": "--report", "trace": "--trace"}


@dataclass(frozen=True)
class SegmentationJob:
    """What to segment, with which model, and what to write.

    output         the mask: an ending of `formats.registry.MASKS`, or a label in a store (SCAN.zarr/labels/NAME);
                   a folder: CASE.nii.gz in it, by the scan's name; None: SCAN_mask.nii.gz beside the scan
    spacing        at which the network sees the scan: the model's, the scan's own, or mm along canonical D, H, W (the
                   patient's z, y, x, whatever the order of the scan's voxels)
    options        which series, what may be mended, what the file does not say
    cleaning       which components to remove from the mask
    split          also a mask a label, 1 inside (`mask_names.split_paths`)
    probabilities  also MASK_probabilities, float32, classes last (first in .zarr); .nii.gz beside .dcm and labels
    statistics     also MASK_statistics.csv
    preview        also MASK_preview.png
    report         also a JSON report here: files, labels, grid, seconds, planned and measured memory
    trace          also a trace here of what each rank did when (`distributed.trace`)
    memory_limit   bytes a rank may use; None: what its machine has free, shared among its ranks
    schedule       how the network is run; None: the fastest that fits
    precision      in which the network's tensors are stored; None: as the model was trained
    scratch        folder for what does not fit into memory; None: that of the mask
    agglomerate    which levels run on fewer ranks (`models.forecast.agglomeration_of_run`)
    view           by windows or the whole volume at once, and with which weights
    go_on          keep in MASK_state what was found, and go on from what an interrupted run kept there
    """

    scan: Path
    model: Path
    output: Path | None = None
    partition: str = "auto"
    probabilities: bool = False
    statistics: bool = False
    preview: bool = False
    report: Path | None = None
    trace: Path | None = None
    overwrite: bool = False
    spacing: Spacing | Literal["model", "native"] = "model"
    options: OpenOptions = field(default_factory=OpenOptions)
    cleaning: Cleaning = field(default_factory=Cleaning)
    split: bool = False
    memory_limit: int | None = None
    schedule: Schedule | None = None
    precision: Precision | None = None
    scratch: Path | None = None
    go_on: bool = False
    agglomerate: str = "auto"
    view: WindowOptions = field(default_factory=WindowOptions)

    @property
    def looks_at_image(self) -> bool:
        """Whether the image's voxels are wanted once more, beside the mask."""
        return self.statistics or self.preview


def channel_files(path: Path, channels: int) -> list[ImageFile]:
    """The scan's channels: ``CASE_0000`` stands for all of them where the model wants several, and so does a 4-D file.

    Raises VolumeError where the header of a file that may be 4-D cannot be read.
    """
    ending = ending_of(path.name, LISTED)
    if channels > 1 and ending and path.name.endswith(f"_0000{ending}"):
        case = path.name.removesuffix(f"_0000{ending}")
        files = [path.with_name(image_name(case, channel, ending)) for channel in range(channels)]
        if all(file.exists() for file in files):
            return [ImageFile(file) for file in files]
    if channels > 1 and count_channels(path) == channels:
        return list(channels_of_file(path, channels))
    return [ImageFile(path)]


def input_files(channels: Iterable[ImageFile]) -> list[Path]:
    """All that is read of a scan's channels: their files (or folders), and both halves of a .hdr/.img pair."""
    files = [file_of(channel.path) for channel in channels]
    pairs = [file.with_suffix(half) for file in files for half in (".hdr", ".img") if file.suffix in (".hdr", ".img")]
    return list(dict.fromkeys(files + pairs))


def mask_path(job: SegmentationJob) -> Path:
    """Where the mask goes: what the job says, or SCAN_mask.nii.gz beside the scan.

    In a folder it is CASE.nii.gz, as nnU-Net names it and `evaluate` looks for it; SCAN_mask.nii.gz where that is the
    folder of the scan.
    """
    scan = Path(os.path.abspath(file_of(job.scan)))  # "." and ".." have a name too, and links stay where they are
    stem = stem_of(scan.name, SUFFIXES)
    if job.output is None:
        return scan.with_name(f"{stem}_mask.nii.gz")
    if not _is_plain_folder(job.output):
        return job.output
    if job.output.resolve() == scan.parent.resolve():
        return job.output / f"{stem}_mask.nii.gz"
    return job.output / f"{stem.removesuffix('_0000')}.nii.gz"


def _is_plain_folder(path: Path) -> bool:
    """Whether it is a folder, and neither a store nor named like a volume or a label in a store."""
    named = path.name.lower().endswith(MASKS)
    return path.is_dir() and not named and not is_zarr_store(path) and store_of(path) is None


def plan_outputs(job: SegmentationJob, labels: LabelTable) -> dict[str, Path]:
    """All paths that will be written by kind, the mask first: "mask", "mask of liver", "probabilities", "report"...

    Raises VolsegError where the name of the mask or the trace is none.
    """
    mask = mask_path(job)
    outputs = {"mask": mask}
    if job.split:
        names = dict(labels.foreground)
        outputs |= {f"mask of {names[value]}": path for value, path in split_paths(mask, labels).items()}
    if job.probabilities:
        suffix = volume_suffix(mask, mask=True)
        fits = suffix in WRITTEN and writer_of(suffix).takes_channels
        outputs["probabilities"] = beside(mask, "_probabilities" + (suffix if fits else ".nii.gz"))
    if job.statistics:
        outputs["statistics"] = beside(mask, "_statistics.csv")
    if job.preview:
        outputs["preview"] = beside(mask, "_preview.png")
    if job.report is not None:
        outputs["report"] = job.report
    if job.trace is not None:
        check_trace_path(job.trace)
        outputs["trace"] = job.trace
    return outputs


def check_outputs(outputs: dict[str, Path], inputs: list[Path], overwrite: bool) -> None:
    """Raise VolumeError where an output exists (without `overwrite`), cannot be written, or is another one or an input.

    outputs  their paths by kind, as `plan_outputs` gives them
    """
    kinds: dict[Path, str] = {}
    for kind, path in outputs.items():
        what = kind.partition(" ")[0]
        option = OPTIONS.get(kind, "-o")
        place = path.parent.resolve() / path.name  # a link is replaced, not what it points to
        if place in kinds:
            raise VolumeError(f"{path}: would hold both {kinds[place]} and {kind}; give another name with {option}")
        kinds[place] = kind
        check_no_input(path, kind, inputs)
        if what in VOLUMES:
            check_output(path, overwrite, mask=what == "mask")
        else:
            check_small_output(path, overwrite)


def rehearse_outputs(
    job: SegmentationJob, outputs: dict[str, Path], labels: LabelTable, scan: Scan, card: ModelCard,
    stored: np.dtype[np.uint8] | np.dtype[np.uint16],
) -> list[str]:  # fmt: skip
    """Try, now that the scan is known, all that can refuse the outputs once they are computed. On the root rank.

    stored  the mask's type

    out  what the user should know of the outputs, one line each

    Raises VolumeError where an output is a file that is read, or cannot be written.
    """
    inputs = [file for image in scan.images for file in image.audit.inputs]
    for kind, path in outputs.items():
        check_no_input(path, kind, inputs)
    fixes, space, network = scan.source.audit.fixes, scan.native, card.described
    contents = {"mask": Content(space, stored, labels=labels, fixes=fixes)}
    contents |= {
        f"mask of {name}": Content(space, np.dtype(np.uint8), labels=alone(labels, value), fixes=fixes)
        for value, name in labels.foreground
    }
    contents["probabilities"] = Content(
        space=space, dtype=np.dtype(np.float32), channels=network.classes, names=card.outputs, fixes=fixes
    )
    intended = [Intended(path, contents[kind], scan.source) for kind, path in outputs.items() if kind in contents]
    kept = {}
    if job.go_on and network.deepest:  # float32 values of the output at stage 1
        voxels = prod(scan.layout.coarser(network.factors[1]).shape)
        kept[beside(outputs["mask"], "_state")] = 4 * voxels * network.widths[1]
    return rehearse(intended, job.overwrite, kept)


def check_no_input(path: Path, kind: str, inputs: Iterable[Path]) -> None:
    """Raise VolumeError where `path`, to be written, is one of the files that are read."""
    if path.exists() and any(file.exists() and path.samefile(file) for file in inputs):
        option = OPTIONS.get(kind, "-o")
        raise VolumeError(f"{path}: is the scan itself; give the {kind} another name with {option}")
