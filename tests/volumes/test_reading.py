"""A folder of scans where one is wanted: the loop that is told works; and a DICOM folder stays one."""

import subprocess

import pytest

from data_sets import image, save
from dicom_files import series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.volumes.reading import open_volume


@pytest.mark.parametrize("ending", ["_0000.nii.gz", ".nii.gz"])
def test_a_folder_of_scans_names_the_loop(tmp_path, ending):
    folder = tmp_path / "imagesTs"
    for name in ("a", "b"):
        save(folder / f"{name}{ending}", image(0)[:2])
        if ending.startswith("_"):
            save(folder / f"{name}_0001.nii.gz", image(0)[:2])
    with pytest.raises(VolumeError, match=r"a folder of [24] volumes, such as a_?0?0?0?0?.nii.gz") as raised:
        open_volume(folder)
    loop = str(raised.value).split("after the other: ")[1]
    script = f'volseg() {{ [ "$1" = segment ] && echo "$2"; }}; {loop}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder / f"{name}{ending}") for name in ("a", "b")]


def test_a_dicom_folder_with_a_nifti_file_in_it_is_a_dicom_folder(tmp_path):
    for number, dataset in enumerate(series_datasets(stored_values((3, 6, 5)))):
        dataset.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    save(tmp_path / "converted.nii.gz", image(0)[:2])
    assert open_volume(tmp_path).shape == (3, 6, 5)


def test_a_link_to_nowhere_is_called_so(tmp_path):
    (tmp_path / "scan.nii.gz").symlink_to("../annex/scan.nii.gz")
    with pytest.raises(VolumeError, match=r"a link to ../annex/scan.nii.gz, which is not there"):
        open_volume(tmp_path / "scan.nii.gz")
