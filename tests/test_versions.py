"""Versions and the revision of the source, with and without git's files."""

from volseg.versions import command_line, source_revision, versions

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tree(folder, head, **files):
    package = folder / "src" / "volseg"
    package.mkdir(parents=True)
    git = folder / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text(head)
    for name, text in files.items():
        (git / name.replace("__", "/").replace("packed_refs", "packed-refs")).write_text(text)
    return package


def test_the_commit_of_a_branch_packed_or_not_or_of_none(tmp_path):
    branch = "ref: refs/heads/main\n"
    assert source_revision(tree(tmp_path / "a", branch, refs__heads__main=COMMIT + "\n")) == COMMIT
    packed = f"# pack-refs with: peeled\n{'f' * 40} refs/heads/other\n{COMMIT} refs/heads/main\n"
    assert source_revision(tree(tmp_path / "b", branch, packed_refs=packed)) == COMMIT
    assert source_revision(tree(tmp_path / "c", COMMIT + "\n")) == COMMIT
    assert source_revision(tree(tmp_path / "d", branch)) is None  # nothing is committed yet


def test_a_linked_tree_follows_to_the_shared_folder(tmp_path):
    tree(tmp_path / "main", "ref: refs/heads/main\n", refs__heads__work=COMMIT + "\n")
    own = tmp_path / "main" / ".git" / "worktrees" / "work"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/work\n")
    (own / "commondir").write_text("../..\n")
    package = tmp_path / "work" / "src" / "volseg"
    package.mkdir(parents=True)
    (tmp_path / "work" / ".git").write_text(f"gitdir: {own}\n")
    assert source_revision(package) == COMMIT


def test_an_installed_package_has_no_revision(tmp_path):
    """Not even where the environment lies in somebody's tree."""
    package = tree(tmp_path, COMMIT).parents[1] / "lib" / "site-packages" / "volseg"
    package.mkdir(parents=True)
    assert source_revision(package) is None
    (tmp_path / "alone" / "src" / "volseg").mkdir(parents=True)
    assert source_revision(tmp_path / "alone" / "src" / "volseg") is None


def test_versions_of_what_is_installed_and_the_command_without_folders():
    found = versions(["numpy", "no-such-library"])
    assert set(found) == {"volseg", "python", "numpy"}
    assert command_line(["/home/someone/bin/volseg", "train", "a b"]) == "volseg train 'a b'"
