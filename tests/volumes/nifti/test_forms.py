"""A mask says where it lies as its scan says it, in every answer that a header has; else its own answers agree."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from volseg.distributed.communicator import SerialCommunicator
from volseg.volumes.ingest import IngestJob, ingest
from volseg.volumes.label_table import LabelTable
from volseg.volumes.nifti.forms import FIELDS
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume

SHAPE = (5, 6, 7)
SERIAL = SerialCommunicator()


def turned(skew=0.0):
    a, b = np.cos(0.21), np.sin(0.21)
    affine = np.array([[a, -b, 0, -40], [b, a, 0, -50], [0, 0, 1, 20], [0, 0, 0, 1.0]]) @ np.diag([0.8, 0.8, 3, 1])
    affine[0, 1] += skew
    return affine


def scan(
    path,
    change=lambda header: None,
    kind=nib.Nifti1Image,
    affine=None,
    q=1,
    s=1,
):
    image = kind(np.zeros(SHAPE[::-1], np.int16), None)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_qform(turned() if affine is None else affine, q)
    image.header.set_sform(turned() if affine is None else affine, s)
    change(image.header)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        image.header.set_data_offset(544 if kind is nib.Nifti2Image else 352)
        image.header.write_to(file)
        file.write(bytes(int(image.header.get_data_offset()) - file.tell()) + bytes(2 * int(np.prod(SHAPE))))
    return path


def mask_of(path, **named):
    source = open_volume(path)
    mask = path.with_name("mask.nii.gz")
    write_volume(mask, source.space, "u1", lambda units: np.zeros(units[0].box.shape, "u1"), SERIAL,
                 labels=LabelTable({"liver": 1}), source=source, **named)  # fmt: skip
    return mask


def header_of(path):
    head = ((nib.load(path).header["sizeof_hdr"] == 540) and nib.Nifti2Header) or nib.Nifti1Header
    opener = nib.openers.ImageOpener(path)
    with opener as file:
        return head.from_fileobj(file, check=False)


def same(mask, path):
    ours, theirs = header_of(mask), header_of(path)
    assert ours["sizeof_hdr"] == theirs["sizeof_hdr"]
    for name in FIELDS:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    np.testing.assert_array_equal(ours["pixdim"][:4], theirs["pixdim"][:4])


def in_itk(path):
    image = sitk.ReadImage(str(path))
    return np.array([*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection()])


@pytest.mark.parametrize(("q", "s"), list(itertools.product(range(5), range(5))))
def test_every_code(tmp_path, q, s):
    path = scan(tmp_path / "scan.nii", q=q, s=s)
    same(mask_of(path), path)
    np.testing.assert_array_equal(in_itk(tmp_path / "mask.nii.gz"), in_itk(path))


@pytest.mark.parametrize("skew", [3e-4, 3e-3])
def test_an_sform_that_is_not_quite_orthonormal(tmp_path, skew):
    """ITK opens the scan by its qform, and so it opens the mask."""
    path = scan(tmp_path / "scan.nii", lambda header: header.set_sform(turned(skew), 1))
    same(mask_of(path), path)
    np.testing.assert_array_equal(in_itk(tmp_path / "mask.nii.gz"), in_itk(path))
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii.gz").affine, nib.load(path).affine)


def moved_qform(header):
    affine = turned()
    affine[:3, 3] += 30
    header.set_qform(affine, 2)


def left_handed(header):
    flipped = turned() @ np.diag([-1, 1, 1, 1])
    header.set_qform(flipped, 1)
    header.set_sform(flipped, 1)
    assert header["pixdim"][0] == -1


def microns(header):
    header.set_xyzt_units("micron")


def no_qfac(header):
    header["pixdim"][0] = 0


@pytest.mark.parametrize("change", [moved_qform, left_handed, microns, no_qfac])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_whatever_the_header_says_the_mask_says(tmp_path, change, kind, capfd):
    path = scan(tmp_path / "scan.nii", change, kind)
    same(mask_of(path), path)
    assert open_volume(tmp_path / "mask.nii.gz").space.matches(open_volume(path).space, 1e-9)
    if kind is nib.Nifti1Image:
        np.testing.assert_array_equal(in_itk(tmp_path / "mask.nii.gz"), in_itk(path))
    assert capfd.readouterr() == ("", "")  # nibabel has a word for each of them


def test_ingested_copies_and_their_labels_have_the_forms_of_the_image(tmp_path):
    path = scan(tmp_path / "in" / "scan.nii", lambda header: header.set_sform(turned(3e-4), 2))
    labels = scan(tmp_path / "in" / "labels.nii", affine=turned(3e-4), q=0)
    ingest(IngestJob(path, tmp_path / "out.nii.gz", (labels,)), SERIAL)
    same(tmp_path / "out.nii.gz", path)
    same(tmp_path / "out_labels.nii.gz", path)


def test_on_another_grid_the_forms_are_new_and_agree(tmp_path):
    path = scan(tmp_path / "scan.nii", moved_qform)
    ingest(IngestJob(path, tmp_path / "out.nii.gz", spacing=(2, 2, 2)), SERIAL)
    header = nib.load(tmp_path / "out.nii.gz").header
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)


@pytest.mark.parametrize(("skew", "code"), [(0, 1), (3e-4, 1), (3e-3, 1), (0.1, 0)])
def test_where_there_are_no_forms_a_small_shear_has_a_qform(tmp_path, skew, code):
    path = tmp_path / "mask.nii.gz"
    write_volume(path, Space(SHAPE, turned(skew)), "u1", lambda units: np.zeros(units[0].box.shape, "u1"), SERIAL)
    header = nib.load(path).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (code, 1)
    if code:
        np.testing.assert_allclose(in_itk(path)[:3], [40, 50, 20], atol=1e-4)
