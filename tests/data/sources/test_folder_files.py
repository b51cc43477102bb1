"""Listing folders, and checking their images once."""

import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from simclr_jax import paths
from simclr_jax.data.sources import folder, folder_files, folder_names, kept
from simclr_jax.errors import DataError


def _png(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


NAMES = [
    "a/z.png",
    "a/b/c.png",
    "a/b.d/c.png",
    "a b/ä.png",
    "b/0.PNG",
    "b/1.png",
]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_files, "FEWEST_KEPT", 1)
    monkeypatch.setattr(folder_files, "_MOST_FILES", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def local(tmp_path):
    root = tmp_path / "images"
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_png(number))
    (root / "notes.txt").write_text("none")
    (root / ".png").write_text("a hidden file")
    return root


@pytest.fixture
def remote(local, gcs):
    paths.upload(local, paths.as_path(f"{gcs}/images"))
    return f"{gcs}/images"


@pytest.fixture(params=["local", "remote"])
def anywhere(request):
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def checked(monkeypatch):
    """The names of the files that were opened to check them."""
    names = []
    for function in ("_check_local", "_check_object"):
        check = getattr(folder_files, function)
        monkeypatch.setattr(
            folder_files,
            function,
            lambda path, check=check: names.append(path) or check(path),
        )
    return names


def test_the_order_is_that_of_pathlib(local, remote):
    expected = [
        path.relative_to(local).as_posix()
        for path in sorted(local.rglob("*"))
        if path.is_file()
    ]
    assert folder_names.find(str(local)).paths == expected
    assert folder_names.find(remote).paths == expected


def test_a_store_gives_what_a_disk_gives(local, remote):
    here, there = folder.FolderSource(str(local)), folder.FolderSource(remote)
    assert there.num_examples == here.num_examples == len(NAMES)
    assert there.class_names == here.class_names == ["a", "a b", "b"]
    assert there.num_ignored == here.num_ignored == 2
    indices = np.array([3, 0, 5, 5])
    for found, expected in zip(there.read(indices), here.read(indices), strict=True):
        assert found.tolist() == expected.tolist()
    assert there.describe(0) == f"file {remote}/{NAMES[1]}"


def test_links_are_followed_but_not_for_ever(local):
    (local / "b" / "2.png").symlink_to(local / "b" / "1.png")
    (local / "c").symlink_to(local / "b")
    (local / "d").symlink_to(local / "b")
    (local / "a" / "up").symlink_to(local)
    (local / "a" / "above").symlink_to(local.parent)
    (local / "b" / "gone.png").symlink_to(local / "nothing")
    # Each leads into the other.
    (local / "a" / "x").symlink_to(local / "a b")
    (local / "a b" / "y").symlink_to(local / "a")
    source = folder.FolderSource(str(local))
    counts = np.bincount(source.labels, minlength=5)
    names = ["a", "a b", "b", "c", "d"]
    assert source.class_names == names
    assert dict(zip(names, counts, strict=True)) == {
        **{"a": 3 + 1, "a b": 1 + 3},
        **{"b": 3, "c": 3, "d": 3},
    }
    found = folder_names.find(str(local)).paths
    assert {path for path in found if path.endswith("/")} == {
        *("a/up/", "a/above/", "a/x/y/", "a b/y/x/", "a b/y/up/", "a b/y/above/"),
    }


def test_folders_that_are_not_entered(local, remote, monkeypatch):
    for root in (local, paths.as_path(remote)):
        for name in (".git", "a/@eaDir", "b/$RECYCLE.BIN", "lost+found"):
            (root / name / "x").mkdir(parents=True, exist_ok=True)
            (root / name / "x/1.png").write_bytes(_png(0))
    here, there = folder.FolderSource(str(local)), folder.FolderSource(remote)
    assert here.num_examples == there.num_examples == len(NAMES)
    assert here.num_ignored == there.num_ignored == 2 + 4
    listed = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scan(path))
    folder_names.find(str(local))
    assert not any("lost+found" in path for path in listed), "root's alone"
    monkeypatch.setattr(folder_names, "_FEW_FOLDERS", 0)
    assert folder.FolderSource(remote).num_ignored == 2 + 4


def test_the_second_start_opens_no_file(anywhere, checked):
    first = folder.FolderSource(anywhere)
    assert len(checked) == len(NAMES)
    second = folder.FolderSource(anywhere)
    assert len(checked) == len(NAMES)
    assert second.num_ignored == first.num_ignored, "the listing is no other file"
    assert second.class_names == first.class_names


def test_only_changed_files_are_opened(anywhere, checked):
    folder.FolderSource(anywhere)
    del checked[:]
    root = paths.as_path(anywhere)
    (root / "b/1.png").write_bytes(_png(1000) + b"more")
    (root / "b/new.png").write_bytes(_png(1001))
    (root / "a/z.png").unlink()
    source = folder.FolderSource(anywhere)
    assert sorted(checked) == [f"{anywhere}/b/1.png", f"{anywhere}/b/new.png"]
    assert source.num_examples == len(NAMES)


def test_a_start_after_a_bad_file_continues(anywhere, checked):
    root = paths.as_path(anywhere)
    good = (root / "b/1.png").read_bytes()
    (root / "b/1.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(DataError, match=r"b/1.png: is no readable image"):
        folder.FolderSource(anywhere)
    (root / "b/1.png").write_bytes(good)
    del checked[:]
    folder.FolderSource(anywhere)
    assert sorted(checked) == [f"{anywhere}/b/0.PNG", f"{anywhere}/b/1.png"]


@pytest.mark.parametrize("fewest", [1, 100])
def test_bad_files_may_remain_in_the_dataset(fewest, anywhere, checked, monkeypatch):
    monkeypatch.setattr(folder_files, "FEWEST_KEPT", fewest)
    folder.FolderSource(anywhere)
    root = paths.as_path(anywhere)
    for name in ("b/1.png", "a/z.png"):
        (root / name).write_bytes(b"\x89PNG no more")
    found = []
    for _ in range(2):  # each start looks at them again
        del checked[:]
        found.clear()
        source = folder.FolderSource(
            anywhere, on_bad_record=lambda *error: found.append(error)
        )
        assert source.num_examples == len(NAMES)
        assert {f"{anywhere}/b/1.png", f"{anywhere}/a/z.png"} <= {*checked}
        assert len(checked) == (2 if fewest == 1 else len(NAMES))
        assert {error for error, _ in found} == {*source.bad_records}
        assert {step for _, step in found} == {0}
        for error in source.bad_records:
            assert error.name == source.describe(error.index)
            assert error.reason.startswith(
                "is no readable image (is no image of a known"
            )
    assert len(found) == 2


def test_bad_files_that_another_process_found(local, checked, monkeypatch):
    (local / "b/1.png").write_bytes(b"no image")
    (local / "a/z.png").write_bytes(b"no image")
    save = kept.Place.save
    # As if the others were not yet done with all parts.
    monkeypatch.setattr(
        kept.Place,
        "save",
        lambda place, name, arrays: (
            name == "checked-images" or save(place, name, arrays)
        ),
    )
    monkeypatch.setattr(kept, "_PATIENCE_SECS", 0)
    names = [f"{local}/a/z.png", f"{local}/b/1.png"]
    found = []
    for index in range(2):
        del checked[:], found[:]
        sharing = kept.Sharing(index, 2)
        folder.FolderSource(
            str(local), sharing=sharing, on_bad_record=lambda *e: found.append(e)
        )
        assert sorted(error.name for error, _ in found) == [f"file {n}" for n in names]
    assert sorted(checked) == names, "for the reasons"


def test_small_folders_keep_nothing(local, monkeypatch):
    monkeypatch.setattr(folder_files, "FEWEST_KEPT", len(NAMES) + 1)
    folder.FolderSource(str(local))
    assert not (local / kept.FOLDER).exists()


def test_headers_behind_a_large_preview(local, remote, monkeypatch):
    monkeypatch.setattr(folder_files, "_HEAD_BYTES", 20)
    assert folder.FolderSource(remote).num_examples == len(NAMES)


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()

    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"folder .*images.*Permission denied"):
        folder_names.find(str(tmp_path / "images"))


def test_a_folder_in_the_home_folder(local, monkeypatch):
    monkeypatch.setenv("HOME", str(local.parent))
    source = folder.FolderSource("~/images")
    assert source.name == f"folder:{local}"
    assert pathlib.Path(source.describe(0).removeprefix("file ")).exists()
