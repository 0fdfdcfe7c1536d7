"""Scans of micro-CT's formats are segmented, and masks written in them lie where the scan lies."""

import numpy as np
import pytest

from tiny import SERIAL, ct_like, save_nifti, untrained_run
from volseg.geometry import Box
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.volumes.ingest import IngestJob, ingest
from volseg.volumes.label_files import label_table_of
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.reading import open_volume


def test_a_stack_of_slices_is_segmented_as_its_nifti_copy(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    run, (folder, scan) = untrained_run(tmp_path / "run"), (tmp_path / "slices", ct_like())
    folder.mkdir()
    for number, page in enumerate(scan.astype("i2")):
        tifffile.imwrite(folder / f"s{number}.tif", page)
    options = OpenOptions(voxel_size=(2.0, 1.0, 1.0))
    ingest(IngestJob(folder, tmp_path / "copy.nii.gz", options=options), SERIAL)
    segment(SegmentationJob(tmp_path / "copy.nii.gz", run, tmp_path / "m.nii.gz"), SERIAL)
    expected = open_volume(tmp_path / "m.nii.gz")
    for ending in (".seg.nrrd", ".mha", ".tif", ".nrrd"):
        path = tmp_path / f"mask{ending}"
        segment(SegmentationJob(folder, run, path, options=options), SERIAL)
        mask = open_volume(path)
        assert mask.space.matches(expected.space)
        whole = Box.whole(mask.shape)
        np.testing.assert_array_equal(mask.read(whole), expected.read(whole))
        if "nrrd" in ending:
            assert label_table_of(path).foreground == label_table_of(tmp_path / "m.nii.gz").foreground


def test_probabilities_go_where_the_format_holds_them(tmp_path):
    run, scan = untrained_run(tmp_path / "run"), save_nifti(tmp_path / "scan.nii", ct_like())
    for ending, other in ((".mha", ".mha"), (".tif", ".nii.gz"), (".seg.nrrd", ".nii.gz")):
        segment(SegmentationJob(scan, run, tmp_path / f"m{ending}", probabilities=True, overwrite=True), SERIAL)
        assert (tmp_path / f"m_probabilities{other}").exists()
