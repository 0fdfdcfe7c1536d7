"""What can be Hounsfield units, and what cannot."""

from pathlib import Path

import numpy as np
import pytest

from data_sets import nnunet_folder, save
from tiny import SERIAL
from volseg.errors import VolumeError
from volseg.volumes.dataset import read_dataset
from volseg.volumes.dataset.examination import examine
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.intensity import ChannelScheme, Normalization, expected_of
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.portrait import Portrait, difference, typical
from volseg.volumes.reading import open_volume
from volseg.volumes.tally import Tally


def portrait(values):
    tally = Tally()
    tally.add(values)
    return Portrait.of(tally)


def body(seed=0, n=40_000):
    """Values of a scan: air, lung, fat, soft tissue, bone."""
    rng = np.random.default_rng(seed)
    shares = (0.45, 0.1, 0.12, 0.3, 0.03)
    parts = ((-1000, 12), (-800, 60), (-100, 20), (50, 30), (500, 250))
    values = [rng.normal(mean, sd, round(share * n)) for share, (mean, sd) in zip(shares, parts, strict=True)]
    return np.clip(np.concatenate(values), -1024, 3071).round().astype(np.int16)


LEARNED = portrait(body(1))
OTHER_SCALES = {
    "intercept lost": lambda a: a + 1024.0,
    "intercept twice": lambda a: a - 1024.0,
    "intercept lost, padding moved along": lambda a: np.where(np.arange(a.size) % 5 == 0, -976.0, a + 1024.0),
    "slope lost": lambda a: a * 10.0,
    "slope twice": lambda a: np.rint(a / 10.0),
    "window of 8 bits": lambda a: np.rint(np.clip((a + 160) / 400 * 255, 0, 255)),
    "16 bits": lambda a: np.rint((a + 1024.0) * 16),
    "0 to 1": lambda a: (a + 1024) / 4095,
    "-1 to 1": lambda a: np.clip(a / 1000, -1, 1),
    "mean 0, deviation 1": lambda a: (a - a.mean()) / a.std(),
    "attenuation": lambda a: 0.02 * (1 + a / 1000),
    "inverted": lambda a: -a.astype(float),
    "all air": lambda a: np.full(a.shape, -1024.0),
    "all air, with noise": lambda a: np.random.default_rng(0).normal(-1000, 15, a.shape).round(),
}
SAME_SCALE = {
    "another body": lambda a: body(7),
    "cropped to the body": lambda a: a[a > -300],
    "much air": lambda a: np.concatenate([a, np.full(30 * a.size, -1000)]),
    "padding": lambda a: np.concatenate([a, np.full(a.size // 4, -2000)]),
    "padding of another kind": lambda a: np.concatenate([a, np.full(a.size // 4, -3024)]).astype(np.float32),
    "metal": lambda a: np.concatenate([a, np.full(a.size // 50, 20000)]),
    "noise": lambda a: a + np.random.default_rng(0).normal(0, 100, a.shape),
    "contrast": lambda a: np.where((a > 20) & (a < 80) & (np.arange(a.size) % 3 == 0), a + 250, a),
    "clipped for bones": lambda a: np.clip(a, -200, 1000),
    "more bone": lambda a: np.concatenate([a, np.random.default_rng(0).normal(900, 300, a.size // 8)]),
}


@pytest.mark.parametrize("name", OTHER_SCALES)
@pytest.mark.parametrize("dtype", ["f4", "i4"])
def test_another_scale_is_noticed(name, dtype):
    values = OTHER_SCALES[name](body())
    assert "do not look like Hounsfield units" in (difference(portrait(values.astype(dtype)), LEARNED) or "")


@pytest.mark.parametrize("name", SAME_SCALE)
def test_what_scans_differ_in_is_no_other_scale(name):
    assert difference(portrait(SAME_SCALE[name](body())), LEARNED) is None


@pytest.mark.parametrize("name", ["abdomen_ct/ct.nii.gz", "abdomen_dicom/series", "head_ct_tilted"])
def test_real_scans_look_like_what_they_are(data, name):
    tilted = name.startswith("head")
    volume = open_volume(Path(data) / name, OpenOptions(DicomOptions(fix_tilt=tilted, resample_gaps=tilted)))
    slices = [values[:, ::4, ::2] for _, values in volume.slabs(4)][::3]
    assert difference(portrait(np.concatenate(slices)), LEARNED) is None
    moved = np.concatenate(slices).astype(np.int32) + 1024
    assert difference(portrait(moved), LEARNED) is not None


def test_a_model_of_another_scale_wants_that():
    learned = portrait(OTHER_SCALES["window of 8 bits"](body(1)))
    assert difference(portrait(OTHER_SCALES["window of 8 bits"](body(2))), learned) is None
    assert difference(portrait(body()), learned) == "are of another scale"


def test_a_model_that_knows_its_foreground_alone_still_knows_hounsfield_units():
    old = expected_of(ChannelScheme("CT", Normalization(-876.0, 534.0, -300.0, 400.0)))
    assert difference(portrait(body() + 1024), old) is not None
    assert difference(portrait(body()), old) is None
    assert expected_of(ChannelScheme("MR", None)) is None


def test_a_portrait_survives_json():
    scheme = ChannelScheme("CT", Normalization(-876.0, 534.0, -300.0, 400.0), LEARNED)
    assert ChannelScheme.from_json(scheme.as_json()) == scheme
    with pytest.raises(VolumeError, match="no voxel"):
        Portrait.of(Tally())


def test_the_typical_one_of_some_is_what_most_are():
    others = portrait(body() + 1024)
    assert not typical([LEARNED, LEARNED, others]).strange
    assert typical([LEARNED, others, others]).strange


def case(seed, offset=0):
    values = body(seed, 12 * 10 * 8)
    values = np.resize(values, 12 * 10 * 8)
    return np.random.default_rng(seed).permutation(values).reshape(12, 10, 8) + np.int16(offset)


@pytest.mark.parallel([1, 4])
def test_one_case_of_a_set_that_lost_its_intercept_is_named(tmp_path, communicator):
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            nnunet_folder(folder, cases=3)
            for seed in range(3):
                save(folder / "imagesTr" / f"case_{seed}_0000.nii.gz", case(seed, 1024 * (seed == 1)))
    found = examine(read_dataset(folder), communicator)
    (fault,) = [fault for fault in found.faults if fault.kind == "intensities"]
    assert (fault.case, fault.serious) == ("case_1", False)
    assert "do not look like Hounsfield units" in fault.message
    assert "most cases: 0.5 % -1024" in fault.message or "most cases: 0.5 % -10" in fault.message
    assert not found.fingerprint.images[0].strange
    assert found.fingerprint.schemes()[0].learned == found.fingerprint.images[0]


def test_a_set_that_is_all_of_another_scale_has_no_odd_case(tmp_path):
    folder = nnunet_folder(tmp_path, cases=3)
    for seed in range(3):
        save(folder / "imagesTr" / f"case_{seed}_0000.nii.gz", case(seed, 1024))
    assert not examine(read_dataset(folder), SERIAL).faults
