"""A model of overlapping regions writes a DICOM SEG whose segments overlap, and a NIfTI file with one value a voxel."""

from __future__ import annotations

from dataclasses import replace

import highdicom as hd
import nibabel as nib
import numpy as np

from dicom_files import save, series_datasets, stored_values
from tiny import SERIAL, untrained_run
from volseg.models.stored import WEIGHTS, load_tensors, save_tensors
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.volumes.regions import Region, value_names

REGIONS = (Region("whole tumour", (1, 2), 1), Region("tumour core", (2,), 2))


def test_segments_are_the_regions_of_the_mask(tmp_path):
    run = untrained_run(tmp_path / "run", classes=2)
    tensors, card = load_tensors(run / WEIGHTS)
    save_tensors(run / WEIGHTS, tensors, replace(card, labels=value_names(REGIONS), regions=REGIONS))
    scan = tmp_path / "series"
    save(series_datasets(stored_values((10, 16, 14))), scan)
    for name in ("mask.dcm", "mask.nii.gz"):
        segment(SegmentationJob(scan, run, tmp_path / name), SERIAL)
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    segmentation = hd.seg.segread(tmp_path / "mask.dcm")
    assert segmentation.SegmentsOverlap == "YES"
    volume = segmentation.get_volume(combine_segments=False)
    counts = [int(volume.array[..., number].sum()) for number in range(2)]
    assert counts == [int((mask > 0).sum()), int((mask == 2).sum())]
    assert min(counts) > 0
