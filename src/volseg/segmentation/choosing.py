"""What `segment` settles before the work: which ranks take part in which levels, the schedule, and what to warn of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import torch

from volseg.distributed.communicator import Communicator
from volseg.distributed.devices import free_memory
from volseg.models.forecast import Machine, agglomeration_of_run, this_machine
from volseg.nn.kernels.jit.code_folder import has_kept_code
from volseg.nn.kernels.jit.machine_code import compiled_modules
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.planning.memory import COMPILER
from volseg.program.kinds import Kind
from volseg.segmentation.averaging import passes_bytes
from volseg.segmentation.job import SegmentationJob, rehearse_outputs
from volseg.segmentation.limit import BesideVoxels, Choice, choose
from volseg.segmentation.opening import LaidOut, Opened
from volseg.segmentation.scale import strange_values
from volseg.segmentation.windows.options import warning_of
from volseg.segmentation.windows.planning import choose_windows
from volseg.volumes.formats.dicom import SEGMENTATION_SUFFIX
from volseg.volumes.scan import Scan
from volseg.volumes.zarr.label_image import store_of

SEG_LIBRARIES = 120 * 2**20
"""What highdicom adds to the process that writes a DICOM SEG, measured on 20 x 512 x 512 voxels; its frames come on top
(see `dicom.seg.output`)."""
DICOM_LIBRARIES = 30 * 2**20
"""What pydicom and the decoders of pixels add to the process that reads a DICOM series, with the buffers of one slice's
decoding: 28 to 34 MiB with 20 slices of 512², 5 more with 400."""
PICTURE_LIBRARIES = 30 * 2**20
"""What Pillow and a preview add to the process that draws it: 17 MiB with planes of 128² voxels, 46 with 700²."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """How the network will be run.

    machine  as the time model sees it; None where no time can be foretold
    stages   which levels run on fewer ranks
    choice   the schedule, and the memory planned for it
    scratch  the folder for what does not fit into memory
    remarks  what the user should know of the outputs, one line each
    strange  warnings of values that are far from those the model learned
    """

    machine: Machine | None
    stages: Agglomeration
    choice: Choice
    scratch: Path
    remarks: tuple[str, ...]
    strange: tuple[str, ...]


def choose_way(
    job: SegmentationJob, opened: Opened, laid: LaidOut, communicator: Communicator, before: Chosen | None = None
) -> Chosen:
    """Choose how a scan is segmented, and try all that could refuse the outputs later. Collective.

    Some slices of the scan are read, to see whether its values are of the model's scale.

    before  what was chosen for another model that fills the same mask: outputs and scan are tried once

    Raises VolsegError, on all ranks, where nothing fits the memory, the outputs cannot be written, or a slice cannot be
    read.
    """
    scan = laid.scan
    scratch = job.scratch or (store_of(opened.mask) or opened.mask).parent
    machine, stages, choice = _choose(job, opened, scan, scratch, communicator)
    if before is not None:
        return replace(before, machine=machine, stages=stages, choice=choice)
    remarks = communicator.on_root(
        lambda: rehearse_outputs(job, opened.outputs, opened.labels, scan, opened.card, opened.mask_type)
    )
    with communicator.meter.doing(Kind.FILES):
        strange = strange_values(scan, opened.card, communicator)
    warning = warning_of(job.view, opened.card)
    strange = strange if warning is None else (*strange, warning)
    return Chosen(
        machine=machine, stages=stages, choice=choice, scratch=scratch, remarks=tuple(remarks), strange=strange
    )


def _choose(
    job: SegmentationJob, opened: Opened, scan: Scan, scratch: Path, communicator: Communicator
) -> tuple[Machine | None, Agglomeration, Choice]:
    """The machine, which levels run on fewer ranks, and the schedule. Collective."""
    network, threads = opened.network, torch.get_num_threads()
    machine = this_machine(network, communicator)  # a convolution is timed: whether it was compiled tells of others
    beside = replace(_beside(job, opened, scan), process=process_bytes(scan, communicator))
    limit = job.memory_limit or free_memory(opened.device, communicator)
    if opened.windows is not None:
        choice = choose_windows(
            network, scan.layout, opened.windows, opened.folds, beside, threads, communicator, str(job.scan),
            limit=limit, precision=opened.precision,
        )  # fmt: skip
        return None, NONE, choice
    stages = agglomeration_of_run(
        job.agglomerate, "segment", network, opened.card.config.training, scan.layout, machine, communicator
    )
    choice = choose(
        network, scan.layout, beside, threads, communicator, str(job.scan),
        limit=limit, schedule=job.schedule, scratch=scratch, agglomeration=stages,
        precision=opened.precision,
    )  # fmt: skip
    return machine, stages, choice


def process_bytes(scan: Scan, communicator: Communicator) -> int:
    """Bytes that a rank's process has more than plans of segmenting count, which compiles its kernels. Collective."""
    compiled = compiled_modules() > 0 or not has_kept_code()
    compiles = bool(communicator.reduce_all(np.array([int(compiled)]), "max")[0])
    reads_dicom = any(volume.format.startswith("DICOM") for volume in scan.images)
    return DICOM_LIBRARIES * reads_dicom - COMPILER * (not compiles)


def _beside(job: SegmentationJob, opened: Opened, scan: Scan) -> BesideVoxels:
    """What the busiest rank will hold beside the network: the mask, and what is made of it."""
    classes, blocks = opened.network.classes, prod(scan.layout.largest_block)
    voxels = max(box.size for box in scan.boxes)
    label = opened.mask_type.itemsize
    if opened.values is not None:  # the mask of all parts beside that of one
        label += opened.card.mask_type.itemsize
    afterwards = label * int(job.split) + (scan.images[0].dtype.itemsize if job.looks_at_image else 0)
    if not job.cleaning.removes_nothing:
        afterwards = max(afterwards, 4)  # the components' numbers
    libraries = SEG_LIBRARIES if opened.mask.suffix.lower() == SEGMENTATION_SUFFIX else 0
    libraries += PICTURE_LIBRARIES if job.preview else 0
    return BesideVoxels(
        image=sum(volume.dtype.itemsize for volume in scan.channels),
        mask=(label + (4 * classes if job.probabilities else 0)) * voxels / blocks,
        afterwards=afterwards * voxels / blocks,
        once=libraries,
        throughout=passes_bytes(classes) if opened.averaged else 0,
        folds=1 if opened.windows is not None else opened.folds,
    )
