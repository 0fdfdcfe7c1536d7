"""Volumes and data sets: generate, check, ingest, info."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volseg.api.opening import Sides, open_options
from volseg.api.ranks import ranks
from volseg.events import Listener, ignore
from volseg.geometry import Triple

if TYPE_CHECKING:
    from volseg.distributed.communicator import Communicator
    from volseg.volumes.dataset import Dataset
    from volseg.volumes.dataset.check import CheckReport
    from volseg.volumes.ingest_report import IngestReport


def generate(
    out: str | Path = "ellipsoids", *, shape: Triple = (64, 64, 64), cases: int = 8,
    ellipsoids: tuple[int, int] = (2, 6), classes: int = 2, noise: float = 0.2, blur: float = 0.7, bias: float = 0.15,
    seed: int = 0, format: Literal["nifti", "zarr"] = "nifti", overwrite: bool = False,
    communicator: Communicator | None = None, listen: Listener = ignore,
) -> Dataset:  # fmt: skip
    """Make a data set of random ellipsoids, in nnU-Net's folder layout, to train on. Collective.

    out         the data set's folder; it must not exist yet, but for `overwrite`
    shape       (D, H, W) voxels of each case
    ellipsoids  fewest and most in a case
    classes     of the foreground, labelled 1 to K
    noise       standard deviation; classes are 2 apart
    blur        sigma of the Gaussian blur in voxels, 0 for none; `bias` is the largest relative shading
    seed        the same one gives the same bytes, on any number of ranks

    Raises ConfigError for arguments out of range, VolumeError where `out` is there or cannot be written.
    """
    with ranks(communicator, listen) as (every, heard):
        from volseg.volumes.dataset import read_dataset
        from volseg.volumes.generation import Recipe, generate_dataset

        recipe = Recipe(
            shape=shape,
            cases=cases,
            ellipsoids=ellipsoids,
            classes=classes,
            noise=noise,
            blur=blur,
            bias=bias,
            seed=seed,
        )
        generate_dataset(out, recipe, every, format=format, overwrite=overwrite, listen=heard)
        return read_dataset(out)


def check(
    dataset: str | Path = "ellipsoids", *, labels: str | Path | None = None, label_names: str | Path | None = None,
    channels: tuple[str, ...] = (), label_map: Sequence[str] = (), allow_empty: bool = False,
    communicator: Communicator | None = None,
    listen: Listener = ignore,
) -> CheckReport:  # fmt: skip
    """Verify every case of a data set: files, grids, labels, values. Collective; the ranks share the cases.

    dataset      a data set's folder, or one scan
    labels       of one scan: the file of its labels, or a folder of one mask a structure; of a folder of .zarr:
                 the name of the label image in each
    label_names, channels  without dataset.json: a JSON file with names and values, and names of the image channels
    label_map    which values make which label: a file or run with [labels], or "liver=5,6" for each label
    allow_empty  cases whose labels are background alone are no fault

    What is wrong stands in the report; raises VolumeError where there is no data set at all.
    """
    with ranks(communicator, listen) as (every, heard):
        from volseg.config import read_label_map
        from volseg.volumes.dataset import DataSource
        from volseg.volumes.dataset.check import check_dataset

        names = None if label_names is None else Path(label_names)
        file = None if labels is None else str(labels)
        source = DataSource(Path(dataset), file, names, channels, read_label_map(label_map))
        return check_dataset(source, every, heard, allow_empty=allow_empty)


def ingest(
    source: str | Path, output: str | Path, *, labels: str | Path | Sequence[str | Path] | None = None,
    series: str | None = None,
    spacing: tuple[float, float, float] | None = None, fix_tilt: bool = False, resample_gaps: bool = False,
    resample_labels: bool = False, overlap: str = "smallest", overwrite: bool = False,
    voxel_size: Sides | str | None = None, shape: Triple | str | None = None, dtype: str | None = None,
    communicator: Communicator | None = None, listen: Listener = ignore,
) -> IngestReport:  # fmt: skip
    """Bring a scan into one volume file, with its own grid and values (HU), every voxel looked at. Collective.

    source           a volume of any format of docs/formats.md: NIfTI, .zarr, DICOM, TIFF, NRRD, MetaImage, HDF5, raw
    output           a .nii.gz, .nii, .zarr, .nrrd, .mha or .tif to write; beside it goes OUT_ingest.json
    labels           also a mask (a volume, a folder of one mask a structure, DICOM SEG or RTSTRUCT); it
                     becomes OUT's name + _labels; of several readers one each: OUT's name + _labels_reader1, ...
    series           which DICOM series: its number in the list ("2.1": a part of series 2), its UID, or the end of that
    spacing          mm along D, H, W to resample to; None keeps the scan's own
    fix_tilt         shear the slices of a tilted gantry back; `resample_gaps` interpolates missing slices
    voxel_size       mm along D, H, W of a file that does not say (TIFF, HDF5, raw)
    shape, dtype     of the voxels of a raw file
    resample_labels  bring a mask that lies on another grid onto the image's
    overlap          who has a voxel of several structures: "smallest", "last" of the list, or "error"

    Raises VolumeError where what is read is not faithful and no option says how to mend it; nothing is written then.
    """
    with ranks(communicator, listen) as (every, heard):
        from volseg.volumes.ingest import IngestJob
        from volseg.volumes.ingest import ingest as run
        from volseg.volumes.overlap import parse_overlap

        options = open_options(series, fix_tilt, resample_gaps, voxel_size, shape, dtype)
        several = [labels] if isinstance(labels, str | Path) else labels or ()
        job = IngestJob(
            source=Path(source),
            output=Path(output),
            labels=tuple(Path(mask) for mask in several),
            options=options,
            spacing=spacing,
            resample_labels=resample_labels,
            overwrite=overwrite,
            overlap=parse_overlap(overlap),
        )
        return run(job, every, heard)


def info(
    path: str | Path, *, series: str | None = None, fix_tilt: bool = False, resample_gaps: bool = False,
    header_only: bool = False, voxel_size: Sides | str | None = None,
    shape: Triple | str | None = None, dtype: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a volume is: shape, spacing, orientation, type, range, labels; of a run folder its configuration and report.

    The keys are those of ``volseg info --json``. `header_only` reads no voxels: no range, no labels. Starts no MPI.
    The other options are those of `ingest`.

    Raises VolumeError where the volume cannot be read, ConfigError where a run folder is damaged.
    """
    from volseg.config.stored_run import is_run_folder, run_facts

    path = Path(path)
    if is_run_folder(path):
        return run_facts(path)
    from volseg.volumes.label_files import label_table_of
    from volseg.volumes.reading import open_volume
    from volseg.volumes.summary import header_facts, value_facts

    volume = open_volume(path, open_options(series, fix_tilt, resample_gaps, voxel_size, shape, dtype))
    names = label_table_of(path)
    facts = header_facts(volume) | ({} if header_only else value_facts(volume, names is not None))
    if names is not None and names.names:
        facts["label_names"] = {str(value): name for value, name in names.foreground}
    return facts
