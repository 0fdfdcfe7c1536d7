"""Endings in any case, and what lies in a folder of volumes and is none."""

from volseg.volumes.file_names import ending_of, foreign_in, foreign_text, names_in, stem_of, volumes_in


def test_endings_count_in_any_case():
    assert ending_of("a.NII.GZ") == ".NII.GZ"
    assert ending_of("a.b.Nii") == ".Nii"
    assert (stem_of("a.b.Nii"), stem_of("a.Zarr"), stem_of("a.nii.bz2")) == ("a.b", "a", "a.nii.bz2")
    assert ending_of("anii.gz") == ""


def test_a_folder_s_volumes_by_name(tmp_path):
    for name in ("a.nii.gz", "a.NII.GZ", "a.nii", "b.NII", "c.ZARR", "._b.nii", "d.mnc"):
        (tmp_path / name).touch()
    assert {name: len(paths) for name, paths in volumes_in(tmp_path).items()} == {"a": 3, "b": 1, "c": 1}
    assert names_in(tmp_path)["a"].name == "a.nii.gz"
    assert {name: path.name for name, path in names_in(tmp_path, (".nii",)).items()} == {"a": "a.nii", "b": "b.NII"}
    assert names_in(tmp_path / "none") == {}


def test_what_volseg_does_not_read_there_is_found(tmp_path):
    for name in ("a.nii.gz", "b.MNC", "c.nii.bz2", "d.img", "e.mgz", "plans.json", "p.npz", ".x.mnc", "note.txt"):
        (tmp_path / name).touch()
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "1.dcm").touch()
    (tmp_path / "other").mkdir()
    foreign = foreign_in(tmp_path)
    assert [path.name for path in foreign] == ["b.MNC", "c.nii.bz2", "d.img", "e.mgz", "scan"]
    assert "b.MNC, c.nii.bz2, d.img and 2 more; convert them to .nii.gz" in foreign_text(tmp_path, foreign)
    assert "volseg ingest scan -o CASE.nii.gz" in foreign_text(tmp_path, foreign[-1:])
