"""The loop in this process: divergence, metrics, checkpoints that survive faults."""

import dataclasses
import functools
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretraining import pretrain

from simclr_jax import load
from simclr_jax.configs import smoke
from simclr_jax.data import preprocessing
from simclr_jax.errors import (
    CheckpointError,
    CheckpointNotFound,
    ConfigError,
    TrainingDiverged,
)
from simclr_jax.runs import checkpoints, dataset_record, metrics_writer
from simclr_jax.training import build, compiling, loop, step


def tiny_config(**overrides):
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": 8,
            "encoder.depth": 10,
            "encoder.width": 0.0625,
            "batch.batch_size": 16,
            "evaluation.batch_size": 64,
            "schedule.train_steps": 4,
            "schedule.warmup_steps": 0,
            "checkpoint.every_steps": 2,
            "log.every_steps": 1,
            "log.writers": (),
            **overrides,
        }
    )
    return config


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    state = pretrain(tiny_config(), str(workdir))
    return workdir, jax.device_get(state)


def test_every_logged_step_has_every_metric(finished_run):
    workdir, _ = finished_run
    records = metrics_writer.read_metrics(workdir / metrics_writer.FILE_NAME)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    wanted = {
        "loss",
        "chance",
        "loss_of_chance",
        "contrastive_accuracy",
        "contrastive_entropy",
        "positive_similarity",
        "negative_similarity",
        "effective_rank_h",
        "effective_rank_z",
        "gradient_norm",
        "update_norm",
        "learning_rate",
        "images_per_sec",
        "input_wait_share",
        "probe_loss",
        "probe_accuracy",
        "health",
    }
    for record in records:
        assert wanted <= record.keys()
        assert record["chance"] == pytest.approx(np.log(31))
        assert 0 <= record["input_wait_share"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_diagnostics_are_computed_for_the_steps_that_are_logged(
    resumed, tmp_path, monkeypatch
):
    computed = []
    compile_diagnostics = compiling.compile_diagnostics

    def counting(*arguments):
        diagnose = compile_diagnostics(*arguments)
        return lambda outputs: computed.append(1) or diagnose(outputs)

    monkeypatch.setattr(compiling, "compile_diagnostics", counting)
    config = tiny_config(**{"log.every_steps": 4})
    pretrain(config, str(tmp_path))
    assert len(computed) == 2
    steps = [1, 4]
    if resumed:
        shutil.rmtree(tmp_path / checkpoints.FOLDER / "4")
        pretrain(config, str(tmp_path))
        # Then the first step of the start, 3, and 4.
        assert len(computed) == 2 + 2
        steps = [1, 3, 4]
    records = metrics_writer.read_metrics(tmp_path / metrics_writer.FILE_NAME)
    assert [record["step"] for record in records] == steps
    for record in records:
        assert record["effective_rank_z"] > 0
        assert 0 <= record["contrastive_accuracy"] <= 1


def test_a_run_that_stops_halfway_resumes_bit_for_bit(finished_run, tmp_path):
    _, whole = finished_run
    pretrain(tiny_config(), str(tmp_path), last_step=2)
    resumed = pretrain(tiny_config(), str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), whole)
    records = metrics_writer.read_metrics(tmp_path / metrics_writer.FILE_NAME)
    assert [record["step"] for record in records] == [1, 2, 3, 4]


def test_a_finished_run_has_nothing_to_do(finished_run, caplog):
    workdir, state = finished_run
    with caplog.at_level("INFO", logger="simclr_jax"):
        again = pretrain(tiny_config(), str(workdir))
    assert "Nothing to do" in caplog.text
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(again.params), state.params
    )


def test_a_workdir_of_another_config_is_refused(finished_run):
    workdir, _ = finished_run
    with pytest.raises(ConfigError) as error:
        pretrain(tiny_config(**{"loss.temperature": 0.2}), str(workdir))
    message = str(error.value)
    assert message.startswith(f"--workdir={workdir}: holds a run of another config")
    assert "loss.temperature: 0.5 -> 0.2" in message
    assert "--allow_config_change" in message
    # What only concerns storing and watching may change freely.
    pretrain(tiny_config(**{"log.every_steps": 7}), str(workdir))


@pytest.mark.slow
def test_another_dataset_under_the_same_name_is_refused(finished_run, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished_run[0], workdir)
    recorded = dataset_record.read(str(workdir))
    assert recorded.num_examples == 7200
    other = dataclasses.replace(recorded, num_examples=7201)
    dataset_record.write(str(workdir), other)
    with pytest.raises(ConfigError, match="7201 -> 7200 examples"):
        pretrain(tiny_config(), str(workdir))
    assert dataset_record.read(str(workdir)) == other
    pretrain(tiny_config(), str(workdir), allow_data_change=True)
    assert dataset_record.read(str(workdir)) == recorded


def test_the_encoder_of_a_checkpoint_is_that_of_the_state(finished_run):
    workdir, state = finished_run
    pretrained = load(str(workdir))
    assert pretrained.step == 4
    for name, value in (("params", state.params), ("batch_stats", state.batch_stats)):
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.device_get(pretrained.variables[name]),
            value["encoder"],
        )
    assert load(str(workdir), step=2).step == 2
    with pytest.raises(CheckpointNotFound, match=r"step 3; there are 2, 4"):
        load(str(workdir), step=3)


@pytest.mark.slow
def test_load_encodes_images_of_any_size_and_batch(finished_run):
    workdir, _ = finished_run
    pretrained = load(str(workdir))
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), np.uint8)
    h = pretrained.encode(images)
    assert h.shape == (5, pretrained.encoder.feature_width)
    assert h.dtype == np.float32
    np.testing.assert_allclose(pretrained.encode(images, batch_size=2), h, rtol=1e-5)
    np.testing.assert_allclose(pretrained.encode(images / 255.0), h, rtol=1e-4)
    np.testing.assert_allclose(pretrained.encode(images[3])[0], h[3], rtol=1e-5)
    prepared = pretrained.preprocessing(images)
    apply = jax.jit(functools.partial(pretrained.encoder.apply, train=False))
    direct = apply(pretrained.variables, prepared)
    np.testing.assert_allclose(h, direct, rtol=1e-5, atol=1e-6)


def test_images_are_prepared_batch_by_batch_and_split_over_the_devices(
    finished_run, monkeypatch
):
    pretrained = load(str(finished_run[0]))
    images = np.random.default_rng(0).integers(0, 256, (21, 9, 9, 3), np.uint8)
    whole = pretrained.encode(images)
    prepared, encoded = [], []
    prepare, layer = preprocessing.Preprocessing.__call__, pretrained.layer(0)

    def watched_prepare(self, images):
        prepared.append(len(images))
        return prepare(self, images)

    def watched_layer(batch):
        encoded.append({shard.data.shape[0] for shard in batch.addressable_shards})
        return layer(batch)

    monkeypatch.setattr(preprocessing.Preprocessing, "__call__", watched_prepare)
    watched = jax.tree_util.Partial(watched_layer)
    monkeypatch.setattr(type(pretrained), "layer", lambda *_: watched)
    # Rounded up to the 8 devices, with the last batch filled up.
    h = pretrained.encode(images, batch_size=10)
    assert prepared == [16, 5]
    assert encoded == [{2}, {2}]
    np.testing.assert_allclose(h, whole, rtol=1e-5, atol=1e-6)
    listed = pretrained.encode([*images], batch_size=8)
    np.testing.assert_allclose(listed, whole, rtol=1e-5, atol=1e-6)
    for none in ([], images[:0]):
        with pytest.raises(ValueError, match=r"array|shape"):
            pretrained.encode(none)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    finished_run, tmp_path
):
    shutil.copytree(finished_run[0], tmp_path, dirs_exist_ok=True)
    wild = tiny_config(**{"schedule.train_steps": 10, "optimizer.learning_rate": 1e30})
    with pytest.raises(TrainingDiverged, match=r"step \d+: \w+ is (nan|inf)"):
        pretrain(wild, str(tmp_path), allow_config_change=True)
    _, latest = checkpoints.open_for_reading(str(tmp_path), None)
    values = jax.tree.leaves(load(str(tmp_path), step=latest).variables)
    assert latest >= 4
    assert all(np.isfinite(np.asarray(value)).all() for value in values)


@pytest.mark.slow
def test_steps_that_are_not_finite_are_left_out_up_to_a_limit(tmp_path, caplog):
    # Without updates every step is like the first.
    wild = tiny_config(
        **{
            "optimizer.learning_rate": 1e30,
            "optimizer.on_nonfinite": "skip",
            "optimizer.max_skipped_steps": 4,
        }
    )
    skipping = pretrain(wild, str(tmp_path / "skipping"))
    assert caplog.text.count("update_norm is inf") == 4
    job = loop.pretraining_job(wild)
    init = compiling.compile_init(job.parts, job.mesh, image_size=8)
    initial = init(jax.random.key(0))
    assert int(skipping.step) == 4
    for part in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.device_get(getattr(skipping, part)),
            jax.device_get(getattr(initial, part)),
        )
    assert metrics_writer.read_metrics(tmp_path / "skipping/metrics.jsonl") == []
    wild.optimizer.max_skipped_steps = 3
    with pytest.raises(TrainingDiverged, match=r"step 4: .* 4 in a row, more than"):
        pretrain(wild, str(tmp_path / "stopped"))


@pytest.mark.slow
def test_a_run_goes_on_with_another_batch_size(finished_run, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished_run[0], workdir)
    larger = tiny_config(**{"batch.batch_size": 32, "schedule.train_steps": 6})
    with pytest.raises(ConfigError, match="batch_size: 16 -> 32"):
        pretrain(larger, str(workdir))
    state = pretrain(larger, str(workdir), allow_config_change=True)
    assert int(state.step) == 6
    assert load(str(workdir)).step == 6
    assert load(str(workdir / "checkpoints" / "4")).step == 4
    logs = {"": [3, 4, 5, 6], "plan_1": [1, 2, 3, 4]}
    for folder, steps in logs.items():
        records = metrics_writer.read_metrics(workdir / folder / "metrics.jsonl")
        assert [record["step"] for record in records] == steps
    saved = {
        name: sorted(int(path.name) for path in (workdir / name).iterdir())
        for name in ("checkpoints", "checkpoints_2")
    }
    assert saved == {"checkpoints": [2, 4], "checkpoints_2": [2, 4, 6]}
    # The same command has nothing to do, and needs no flag.
    assert int(pretrain(larger, str(workdir)).step) == 6


@pytest.mark.slow
def test_a_finished_run_goes_on_with_a_new_cosine(finished_run, tmp_path, caplog):
    workdir = tmp_path / "copy"
    shutil.copytree(finished_run[0], workdir)
    longer = tiny_config(
        **{
            "schedule.train_steps": 8,
            "schedule.extend": "restart",
            "schedule.extend_step": 4,
        }
    )
    with caplog.at_level("WARNING", logger="simclr_jax"):
        pretrain(longer, str(workdir), allow_config_change=True)
    peak = build.make_schedule(longer)(0)
    assert f"was 0 here (step 4 of 4) and is now {peak:.4g}" in caplog.text
    records = metrics_writer.read_metrics(workdir / metrics_writer.FILE_NAME)
    rates = [record["learning_rate"] for record in records]
    cosine = [peak * (1 + np.cos(np.pi * step / 4)) / 2 for step in range(4)]
    np.testing.assert_allclose(rates, [*cosine, *cosine], rtol=1e-5)


def test_damaged_and_unfinished_checkpoints(finished_run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "simclr_jax")
    workdir = tmp_path / "copy"
    shutil.copytree(finished_run[0], workdir)
    folder = workdir / checkpoints.FOLDER
    # A save that a kill cut off leaves a folder that does not count.
    shutil.copytree(folder / "4", folder / "6.orbax-checkpoint-tmp")
    assert checkpoints.open_for_reading(str(workdir), None)[1] == 4

    for file in (folder / "4" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    state = pretrain(tiny_config(), str(workdir))
    # The run resumes from the one before, and the damaged one is kept aside.
    assert f"checkpoint {folder / '4'}: is damaged (" in caplog.text
    assert "Resuming from the checkpoint of step 2." in caplog.text
    assert (folder / "4.damaged").is_dir()
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(state.params),
        finished_run[1].params,
    )


def test_the_newest_checkpoints_and_every_nth_are_kept(tmp_path):
    params = {"encoder": {"kernel": jnp.ones(3)}}
    state = step.TrainState(jnp.int32(0), params, {"encoder": {}}, {})
    store = checkpoints.Checkpoints(str(tmp_path), keep_last=2, keep_every_steps=4)
    for number in (2, 4, 6, 8, 10, 12, 14):
        store.save(number, state, {"config_hash": "0"})
    store.close()
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 8, 12, 14]
    folder, _ = checkpoints.open_for_reading(str(tmp_path), 8)
    assert checkpoints.read_description(folder)["step"] == 8


@pytest.mark.slow
def test_a_change_that_cannot_be_restored_leaves_the_run_as_it_was(finished_run):
    workdir, _ = finished_run
    before = (workdir / "config.json").read_text()
    deeper = tiny_config(**{"encoder.depth": 34})
    with pytest.raises(CheckpointError, match="saved under another config"):
        pretrain(deeper, str(workdir), allow_config_change=True)
    assert (workdir / "config.json").read_text() == before


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="--workdir="):
            pretrain(tiny_config(), str(bad))
