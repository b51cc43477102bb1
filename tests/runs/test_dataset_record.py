"""A run directory records its dataset, and another one is refused."""

import json

import numpy as np
import pytest
from ml_collections import config_dict

from simclr_jax.config import identity
from simclr_jax.configs import smoke
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.errors import ConfigError
from simclr_jax.parallel import processes
from simclr_jax.runs import dataset_record, directory
from simclr_jax.training import starting

IMAGES = np.random.default_rng(0).integers(0, 256, (256, 4, 4, 3), np.uint8)
OLD = ArraySource(IMAGES, name="images")
NEW = ArraySource(IMAGES[1:], name="images")


def check(workdir, source, *, allow_data_change=False):
    return dataset_record.check(str(workdir), source, allow_data_change)


def test_the_first_start_records_the_dataset(tmp_path):
    listing = check(tmp_path / "new", OLD)
    assert not (tmp_path / "new").exists()  # before anything is decided
    dataset_record.write(str(tmp_path), listing)
    stored = json.loads((tmp_path / "dataset.json").read_text())
    assert stored["num_examples"] == 256
    assert stored["fingerprint"] == OLD.listing().fingerprint
    assert dataset_record.read(str(tmp_path)) == OLD.listing()
    assert check(tmp_path, OLD) == listing


def test_another_dataset_is_refused_with_the_difference(tmp_path):
    dataset_record.write(str(tmp_path), OLD.listing())
    with pytest.raises(ConfigError) as caught:
        check(tmp_path, NEW)
    message = str(caught.value)
    assert message.startswith(f"--workdir={tmp_path}: ")
    assert "256 -> 255 examples" in message
    assert "--allow_data_change" in message
    assert "\n" not in message


def test_it_is_taken_where_that_is_allowed(tmp_path, caplog):
    dataset_record.write(str(tmp_path), OLD.listing())
    with caplog.at_level("WARNING", logger="simclr_jax"):
        listing = check(tmp_path, NEW, allow_data_change=True)
    assert "256 -> 255 examples" in caplog.text
    dataset_record.write(str(tmp_path), listing)
    assert check(tmp_path, NEW) == NEW.listing()
    with pytest.raises(ConfigError, match="255 -> 256 examples"):
        check(tmp_path, OLD)


@pytest.mark.parametrize("content", ["", "[]", '{"num_examples": 3}', "[" * 100_000])
def test_a_damaged_record_is_named(tmp_path, content):
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        check(tmp_path, OLD)
    assert str(caught.value).startswith(f"file {path}: is damaged (")
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=f"file {path}: cannot be read"):
        check(tmp_path, OLD)


def test_process_0_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "is_main", lambda: False)
    dataset_record.write(str(tmp_path), OLD.listing())
    assert not (tmp_path / "dataset.json").exists()


def test_all_processes_must_have_the_same_images(monkeypatch):
    said = {}
    monkeypatch.setattr(processes, "require_equal", said.__setitem__)
    starting.require_same_config_and_data(smoke.get_config(), OLD.listing())
    first = dict(said)
    changed = IMAGES.copy()
    changed[0] ^= 1
    other = ArraySource(changed, name="images").listing()
    starting.require_same_config_and_data(smoke.get_config(), other)
    differing = [name for name in said if said[name] != first[name]]
    assert differing == ["the training images of photographs:"]


def stored_run(workdir, dataset, source):
    config = smoke.get_config()
    config.data.dataset = dataset
    directory.write_config(str(workdir), config)
    dataset_record.write(str(workdir), source.listing())
    return config


def test_a_dataset_that_moved_is_no_other_config(tmp_path):
    config = stored_run(tmp_path, "folder:/old/place", OLD)
    config.data.dataset = "folder:/new/place"
    directory.check(str(tmp_path), config, OLD.listing(), False)
    changes = "data.dataset: 'folder:/old/place' -> 'folder:/new/place'"
    with pytest.raises(ConfigError, match=changes):
        directory.check(str(tmp_path), config, NEW.listing(), False)
    config.data.dataset = "npz:/old/place"
    with pytest.raises(ConfigError, match=r"data\.dataset"):
        directory.check(str(tmp_path), config, OLD.listing(), False)
    config.data.dataset = "folder:/new/place"
    config.seed = 5
    with pytest.raises(ConfigError) as caught:
        directory.check(str(tmp_path), config, OLD.listing(), False)
    assert "(seed: 0 -> 5)" in str(caught.value)
    # A run of an earlier version, which did not record its dataset.
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ConfigError, match=r"data\.dataset"):
        directory.check(str(tmp_path), config, OLD.listing(), False)


def test_only_names_with_paths_can_move():
    def config(dataset):
        return config_dict.ConfigDict({"data": {"dataset": dataset}}).to_dict()

    moved = [("folder:/a", "folder:/b"), ("npz:/a", "npz:gs://b/c")]
    others = [("folder:/a", "prepared:/a"), ("cifar10", "cifar100"), ("npz:a", "npz:a")]
    assert all(identity.is_moved(config(a), config(b)) for a, b in moved)
    assert not any(identity.is_moved(config(a), config(b)) for a, b in others)
