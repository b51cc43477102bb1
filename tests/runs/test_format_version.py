"""Run directories of older formats load, evaluate and resume."""

import json
import pathlib
import tarfile

import commands
import numpy as np
import pytest

import simclr_jax
from simclr_jax.config import identity, renamed, rules
from simclr_jax.configs import base
from simclr_jax.errors import ConfigError
from simclr_jax.runs import directory, format_version

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
# What the recorded run was started with; see tests/golden/README.md.
SETTINGS = (
    *commands.TINY,
    "--config.encoder.depth=18",
    "--config.schedule.train_steps=6",
    "--config.checkpoint.every_steps=3",
)


@pytest.fixture
def recorded(tmp_path):
    """A run of format 1, stopped after step 3 of 6."""
    with tarfile.open(GOLDEN / "run_format_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def expected():
    """Images, and their h after steps 3 and 6 as the version that wrote it had them."""
    return np.load(GOLDEN / "run_format_1.npz")


def stored_config(run):
    return json.loads((run / directory.CONFIG).read_text())


def test_the_recorded_run_has_the_first_format(recorded):
    stored = stored_config(recorded)
    assert "format_version" not in stored
    assert stored["augment"]["device"] == "host"


def test_a_run_of_the_first_format_loads(recorded, expected):
    h = simclr_jax.load(str(recorded)).encode(expected["images"])
    np.testing.assert_allclose(h, expected["h_step3"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_run_of_the_first_format_resumes_and_is_evaluated(recorded, expected):
    receipt = json.loads((recorded / "eval" / "knn.json").read_text())
    code, _, err = commands.run(
        "evaluate", f"--workdir={recorded}", "--protocol=knn", "--step=3"
    )
    assert code == 0, err
    again = json.loads((recorded / "eval" / "knn.json").read_text())
    # A vote of 1,080 may turn where two neighbours are as near as rounding.
    assert abs(again["value"] - receipt["value"]) < 2 / 1080
    assert again["encoder_checksum_after"] == receipt["encoder_checksum_after"]

    code, _, err = commands.run("pretrain", f"--workdir={recorded}", *SETTINGS)
    assert code == 0, err
    assert "Resuming from the checkpoint of step 3" in err
    h = simclr_jax.load(str(recorded)).encode(expected["images"])
    # Three updates of Adam, whose first steps are as large where gradients are tiny.
    difference = np.abs(h - expected["h_step6"]).max()
    assert difference < 0.02 * np.abs(expected["h_step6"]).max()
    assert difference < 0.2 * np.abs(expected["h_step6"] - expected["h_step3"]).max()
    assert stored_config(recorded)["format_version"] == format_version.VERSION


def test_every_key_of_base_is_in_the_first_format_or_listed_as_added(recorded):
    upgraded = format_version.upgrade(stored_config(recorded), file="config.json")
    assert set(identity.flatten(upgraded)) == set(identity.flatten(base.get_config()))


def test_an_older_run_takes_the_default_of_the_version_that_added_a_key(monkeypatch):
    monkeypatch.setattr(format_version, "VERSION", 4)
    added = {2: {"a.new": 1}, 3: {"a.new": 2, "a.newer": 3}, 4: {"a.newest": 4}}
    monkeypatch.setattr(format_version, "_ADDED", added)
    stored = {"format_version": 2, "a": {"new": 5}}
    upgraded = format_version.upgrade(stored, file="config.json")
    assert upgraded == {"a": {"new": 5, "newer": 3, "newest": 4}}


@pytest.mark.parametrize("version", [format_version.VERSION + 1, 0, "2", True])
def test_a_format_that_is_not_known_is_refused_by_name(tmp_path, version):
    path = tmp_path / directory.CONFIG
    path.write_text(json.dumps({"format_version": version}))
    with pytest.raises(ConfigError) as caught:
        directory.read_config(str(tmp_path))
    assert str(path) in str(caught.value)
    assert f"format_version={version!r}" in str(caught.value)


def test_renamed_keys_and_values_keep_their_meaning():
    stored = {"augment": {"device": "split"}, "loss": {"form": "blockwise"}}
    upgraded = format_version.upgrade(stored, file="config.json")
    assert upgraded["augment"]["placement"] == "host_crop"
    assert upgraded["loss"]["form"] == "streaming"
    assert "device" not in upgraded["augment"]


@pytest.mark.parametrize(
    ("version", "log", "writers"),
    [
        (6, {"tensorboard": True}, ["tensorboard"]),
        (6, {"tensorboard": False}, []),
        (3, {"tensorboard": False, "every_steps": 5}, []),
        (6, {"every_steps": 5}, ["tensorboard"]),
        (format_version.VERSION, {"writers": ["mlflow"]}, ["mlflow"]),
    ],
)
def test_runs_keep_their_choice_of_tensorboard(version, log, writers):
    stored = {"format_version": version, "log": dict(log)}
    upgraded = format_version.upgrade(stored, file="config.json")
    assert upgraded["log"].pop("writers") == writers
    assert "tensorboard" not in upgraded["log"]


def test_renamed_keys_are_those_of_base():
    keys = set(identity.flatten(base.get_config()))
    assert set(renamed.KEYS.values()) <= keys
    assert not set(renamed.KEYS) & keys
    for key, values in renamed.VALUES.items():
        config = base.get_config()
        for old, new in values.items():
            config.update_from_flattened_dict({key: new})
            rules.validate(config)
            config.update_from_flattened_dict({key: old})
            with pytest.raises(ConfigError, match=f"is now called '{new}'"):
                rules.validate(config)


@pytest.mark.parametrize("version", [5, 6])
def test_a_resumed_run_reads_its_files_as_it_began(version, tmp_path):
    began = base.get_config()
    began.data.exif_orientation, began.data.white_level = True, 4095
    content = identity.as_json(began)
    if version == 5:
        del content["data"]["exif_orientation"], content["data"]["white_level"]
    stored = {"format_version": version, **content}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    resumed = directory.as_recorded(base.get_config(), str(tmp_path))
    expected = {5: (False, 65535), 6: (True, 4095)}[version]
    assert (resumed.data.exif_orientation, resumed.data.white_level) == expected
    chosen = base.get_config()
    chosen.data.white_level = 1023
    assert directory.as_recorded(chosen, str(tmp_path)).data.white_level == 1023
    new = directory.as_recorded(base.get_config(), str(tmp_path / "new"))
    assert new.data.white_level is None
    # What versions without the keys did leaves their hash as it was.
    recorded = directory.read_config(str(tmp_path))
    assert identity.config_hash(recorded) == identity.config_hash(content)
