"""`volseg ingest` as a user types it."""

import nibabel as nib
import numpy as np
import pytest

from dicom_files import save, series_datasets, stored_values


@pytest.fixture
def folder(tmp_path):
    save(series_datasets(stored_values()), tmp_path / "series")
    return tmp_path


def test_a_series_becomes_a_file(folder, python):
    run = python(["-m", "volseg", "ingest", "series", "-o", "ct.nii.gz"], cwd=folder)
    assert run.returncode == 0, run.stderr
    assert "2x0.8x0.7" in run.stdout
    image = nib.load(folder / "ct.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, stored_values().astype(int) - 1024)


def test_ranks_write_the_same_file(folder, python, mpirun):
    for name, start in (("one.zarr", python), ("two.zarr", lambda c, cwd: mpirun(2, c, cwd=cwd))):
        run = start(["-m", "volseg", "ingest", "series", "-o", name], cwd=folder)
        assert run.returncode == 0, run.stderr
    assert run.stdout.count("two.zarr") == 1  # one rank reports
    shard = "0/c/0/0/0"
    assert (folder / "one.zarr" / shard).read_bytes() == (folder / "two.zarr" / shard).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.nii", "-o", "out.nii"], "nothing.nii: no such file"),
        (["empty", "-o", "out.nii"], "empty: no DICOM images"),
        (["series", "-o", "out.mgz"], "let the name end in"),
        (["series", "-o", "missing/out.nii"], "no folder missing"),
        (["series", "-o", "old.nii"], "give --overwrite"),
        (["broken.nii", "-o", "out.nii"], "truncated"),
        (["nan.nii", "-o", "out.nii"], "1 voxel is NaN or infinite"),
        (["series"], "--output"),
    ],
)
def test_bad_input_is_one_message_and_code_2(folder, python, arguments, message):
    (folder / "empty").mkdir()
    (folder / "old.nii").write_text("precious")
    array = np.zeros((3, 4, 5), "f4")
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "nan.nii")
    (folder / "broken.nii").write_bytes((folder / "nan.nii").read_bytes()[:-1])
    before = sorted(path.name for path in folder.iterdir())
    run = python(["-m", "volseg", "ingest", *arguments], cwd=folder)
    assert run.returncode == 2
    lines = [line for line in run.stderr.splitlines() if not line.startswith("writing")]
    assert message in run.stderr
    assert len(lines) <= 2
    assert "Traceback" not in run.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_list_is_of_dicom_series(folder, python, mpirun):
    run = python(["-m", "volseg", "ingest", "series", "--list"], cwd=folder)
    assert run.returncode == 0
    assert "series in series" in run.stdout
    (folder / "ct.nii.gz").touch()
    for start in (python, lambda c, cwd: mpirun(2, c, cwd=cwd)):
        run = start(["-m", "volseg", "ingest", "ct.nii.gz", "--list"], cwd=folder)
        assert run.returncode == 2
        assert "error: ct.nii.gz: one volume, no DICOM; --list shows DICOM series" in run.stderr
        assert "rank" not in run.stderr
