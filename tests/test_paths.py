"""Paths: local, on mounted buckets, on stores."""

import pathlib

import pytest

from simclr_jax import paths
from simclr_jax.errors import ConfigError, DataError


@pytest.fixture(params=["disk", "gcs", "s3"])
def root(request, tmp_path):
    """A folder of each kind."""
    if request.param == "disk":
        return str(tmp_path)
    return request.getfixturevalue(request.param)


def test_a_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(paths.as_path("~/runs/a")) == "/home/somebody/runs/a"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("ftp://host/run", "must be a local path or start with gs://, s3://"),
        ("gs://", "must name a bucket"),
        ("s3:///run", "must name a bucket"),
    ],
)
def test_paths_that_name_no_place(path, reason):
    with pytest.raises(ConfigError, match=f"^{path}: {reason}"):
        paths.as_path(path)


def test_a_store_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(paths.STORES, "gs", "package_that_is_not_there")
    with pytest.raises(ConfigError, match=r"pip install simclr_jax\[stores\]"):
        paths.as_path("gs://bucket/run")


@pytest.mark.parametrize("store", ["gcs", "s3"])
def test_a_missing_bucket_is_one_line(store, request):
    scheme = request.getfixturevalue(store).partition("://")[0]
    path = f"{scheme}://bucket-that-is-not-there/run"
    with pytest.raises(ConfigError, match=f"^--workdir={path}: bucket .* cannot be"):
        paths.check_reachable(path, flag="workdir")


def test_a_bucket_that_is_there(root):
    paths.check_reachable(f"{root}/new/run", flag="workdir")


def test_folders_are_copied_with_their_sub_folders(root, tmp_path):
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "top.txt").write_text("1")
    (source / "a" / "b" / "deep.bin").write_bytes(bytes(range(256)))
    target = paths.as_path(root) / "target"

    paths.upload(source, target)
    paths.download(target, tmp_path / "back")

    assert (tmp_path / "back" / "top.txt").read_text() == "1"
    deep = tmp_path / "back" / "a" / "b" / "deep.bin"
    assert deep.read_bytes() == bytes(range(256))


def test_what_is_fetched_has_all_files_of_a_name(root, tmp_path):
    folder = paths.as_path(root) / "weights"
    folder.mkdir(parents=True)
    for name in ("model.index", "model.data-0", "other.index"):
        (folder / name).write_text(name)

    with paths.fetched(f"{root}/weights/model") as local:
        found = {path.name for path in pathlib.Path(local).parent.glob("model.*")}
        assert found == {"model.index", "model.data-0"}


def test_errors_name_the_original_of_a_fetched_file(gcs):
    (paths.as_path(gcs) / "net.pth").write_text("damaged")
    with (
        pytest.raises(DataError, match=f"^file {gcs}/net.pth: is damaged$"),
        paths.fetched(f"{gcs}/net.pth") as local,
    ):
        raise DataError(f"file {local}: is damaged")


def test_mounts_of_buckets_are_told_from_disks(monkeypatch, tmp_path):
    mounts = tmp_path / "mounts"
    inside = tmp_path / "my bucket"
    (inside / "disk").mkdir(parents=True)
    escaped = str(inside).replace(" ", "\\040")
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\n"
        f"bucket {escaped} fuse.gcsfuse rw 0 0\n"
        f"/dev/sdb1 {escaped}/disk xfs rw 0 0\n"
    )
    monkeypatch.setattr(paths, "_MOUNTS", str(mounts))
    assert paths.is_mounted_bucket(inside / "runs" / "a")
    assert not paths.is_mounted_bucket(inside / "disk" / "a")
    assert not paths.is_mounted_bucket(f"{inside}-other")
    assert not paths.is_mounted_bucket("gs://bucket/run")
