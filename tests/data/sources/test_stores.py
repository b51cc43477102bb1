"""Datasets on gs:// and s3://: the same batches as from a disk, or one line."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import stores
import tfds_files
from cases import first
from stores_proxy import Proxy

from simclr_jax import paths
from simclr_jax.data import pipeline
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.sources import object_store, record_index, registry, storage
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError, StoreFailed

CROP = {"area_min": 0.08, "area_max": 1.0, "ratio_min": 0.75, "ratio_max": 1.33}


@pytest.fixture(params=["gcs", "s3"])
def bucket(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    policy = storage.Retries(sleep=lambda secs: None)
    monkeypatch.setattr(storage, "RETRIES", policy)


def _batches(source):
    composition = Composition(
        ("crop",), {"crop": {"sampler": "reference", **CROP}}, image_size=8
    )
    buffers = Buffers.choose(batch_bytes=1, threads=2, parallel_reads=2)
    return pipeline.train_batches(
        source,
        composition,
        seed=0,
        batch_size=6,
        stop_step=4,
        compiled=False,
        buffers=buffers,
    )


@pytest.fixture
def tfds_dataset(tmp_path):
    """data_dir(format) -> a local folder with the dataset 'noise'."""

    def make(file_format):
        tfds_files.prepare(tmp_path / file_format, file_format=file_format)
        return tmp_path / file_format

    return make


@pytest.mark.parametrize("bucket", first(1, ["gcs", "s3"]), indirect=True)
@pytest.mark.parametrize(
    "file_format", ["tfrecord", pytest.param("array_record", marks=pytest.mark.slow)]
)
def test_tfds_datasets_give_the_batches_of_a_disk(
    file_format, bucket, tfds_dataset, monkeypatch
):
    if file_format == "array_record":
        pytest.importorskip("zstandard")
    monkeypatch.setattr(record_index, "FEWEST_KEPT", 1)
    here = tfds_dataset(file_format)
    paths.upload(here, paths.as_path(f"{bucket}/data"))
    expected = list(
        _batches(registry.open_source("noise", split="train", data_dir=str(here)))
    )
    for _ in range(2):  # with the index that was kept, too
        source = registry.open_source("noise", split="train", data_dir=f"{bucket}/data")
        for batch, correct in zip(_batches(source), expected, strict=True):
            for key in ("images", "labels"):
                np.testing.assert_array_equal(batch[key], correct[key])


@pytest.mark.slow
def test_batches_survive_a_store_that_fails_now_and_then(
    gcs, gcs_running, tfds_dataset, monkeypatch, caplog
):
    paths.upload(tfds_dataset("tfrecord"), paths.as_path(f"{gcs}/data"))
    where = {"split": "train", "data_dir": f"{gcs}/data"}
    expected = list(_batches(registry.open_source("noise", **where)))
    with Proxy(gcs_running.url, fail_every=5, reset_every=7, only="tfrecord") as proxy:
        stores.use(monkeypatch, gcs_running.variables(proxy.url))
        source = registry.open_source("noise", **where)
        with caplog.at_level(logging.WARNING, "simclr_jax"):
            found = list(_batches(source))
        counts = proxy.counts()
    assert min(counts["failed"], counts["reset"]) > 0
    assert "try 1 of 6 failed" in caplog.text
    for batch, correct in zip(found, expected, strict=True):
        np.testing.assert_array_equal(batch["images"], correct["images"])


def test_a_store_that_goes_away_ends_training_with_one_line(
    gcs, gcs_running, tfds_dataset, monkeypatch
):
    paths.upload(tfds_dataset("tfrecord"), paths.as_path(f"{gcs}/data"))
    with Proxy(gcs_running.url) as proxy:
        stores.use(monkeypatch, gcs_running.variables(proxy.url))
        source = registry.open_source("noise", split="train", data_dir=f"{gcs}/data")
    with pytest.raises(StoreFailed) as caught:
        list(_batches(source))
    message = str(caught.value)
    assert message.startswith(f"file {gcs}/data/noise/1.0.0/noise-train.tfrecord-")
    assert "could not be read in 6 tries" in message
    assert "\n" not in message


def test_npz_files(bucket, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(5))
    paths.as_path(f"{bucket}/a.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    source = registry.open_source(f"npz:{bucket}/a.npz", split="train")
    found, labels = source.read(np.arange(5))
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(labels, np.arange(5))


@pytest.mark.parametrize("kind", ["folder", "prepared", "npz", "tfds"])
@pytest.mark.parametrize(
    ("place", "rule"),
    [
        ("gs://no-such-bucket/data", "there is no such bucket"),
        ("s3://no-such-bucket/data", "there is no such bucket"),
        ("{bucket}/nothing", ""),
        ("gcs://bucket/data", "must be a local path or start with gs://, s3://"),
        ("gs://", "must name a bucket"),
    ],
)
def test_what_is_not_there_is_one_line(kind, place, rule, gcs, s3):
    place = place.format(bucket=gcs)
    dataset, keys = f"{kind}:{place}", {"split": "all"}
    if kind == "tfds":
        dataset, keys = "noise", {"split": "train", "data_dir": place}
    with pytest.raises(DataError) as caught:
        registry.open_source(dataset, **keys)
    message = str(caught.value)
    assert place in message
    assert rule in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("scheme", "hint"), [("gs", "gcloud auth"), ("s3", "AWS_ACCESS_KEY_ID")]
)
def test_missing_credentials_are_named(scheme, hint, monkeypatch):
    from obstore import exceptions

    connection = object_store.Connection(store=None, anonymous=True)
    monkeypatch.setattr(object_store, "_connect", lambda *_: connection)

    def refuse(*_, **__):
        raise exceptions.PermissionDeniedError("403\nand much more")

    monkeypatch.setattr("obstore.head", refuse)
    path = f"{scheme}://bucket/data"
    with pytest.raises(DataError) as caught:
        registry.open_source(f"prepared:{path}", split="train")
    assert path in str(caught.value)
    assert "no credentials were found; " in str(caught.value)
    assert hint in str(caught.value)


def test_a_store_needs_its_packages(monkeypatch):
    monkeypatch.setattr(
        "simclr_jax.data.optional.is_installed", lambda package: package != "obstore"
    )
    with pytest.raises(DataError, match=r"needs obstore, .*simclr_jax\[stores\]"):
        registry.open_source("prepared:gs://another-bucket/data", split="train")


@pytest.mark.slow
def test_stores_need_no_tensorflow(gcs, tmp_path):
    images = np.zeros((5, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    paths.as_path(f"{gcs}/a.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    program = f"""
import sys
for name in ("tensorflow", "tensorflow_datasets", "numba", "zstandard"):
    sys.modules[name] = None  # makes every import of it fail
from simclr_jax.data.sources import registry
print(registry.open_source("npz:{gcs}/a.npz", split="train").num_examples)
from simclr_jax.errors import DataError
for kind in ("folder", "prepared"):
    try:
        registry.open_source(f"{{kind}}:{gcs}/nothing", split="all")
    except DataError as error:
        print(kind)
"""
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["5", "folder", "prepared"]
