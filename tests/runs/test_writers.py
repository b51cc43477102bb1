"""The writers of a run's log, read back."""

import io
import json
import logging
import struct
import sys

import event_files
import numpy as np
import pytest
from etils import epath
from ml_collections import config_dict
from PIL import Image

from simclr_jax import paths
from simclr_jax.config import identity, log_writers, rules
from simclr_jax.configs import base
from simclr_jax.data import optional
from simclr_jax.errors import ConfigError
from simclr_jax.runs import plans
from simclr_jax.runs.metrics_writer import FILE_NAME, MetricsWriter
from simclr_jax.runs.writers import RUN_IDS, Points, Writers, pictures

VIEWS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)


def open_writers(folder, *names, resume_step=0):
    return Writers(names, epath.Path(folder), folder, resume_step=resume_step)


def points(count=5, width=4, side=6):
    rng = np.random.default_rng(count)
    return Points(
        h=rng.normal(size=(count, width)).astype(np.float32),
        labels=[f"class\t{n % 3}" for n in range(count)],
        images=[7 * n for n in range(count)],
        thumbnails=rng.integers(0, 256, (count, side, side, 3), np.uint8),
    )


# TensorBoard --------------------------------------------------------------------------


def test_tensorboard_gets_numbers_pictures_and_hyper_parameters(tmp_path):
    config = identity.flatten(identity.as_json(base.get_config()))
    writers = open_writers(tmp_path, "tensorboard")
    writers.hparams(config)
    writers.image(0, "views", VIEWS)
    writers.scalars(1, {"loss": 2.5, "gradient_norm": float("inf")})
    writers.scalars(3, {"loss": 2.25})
    writers.close()
    found = event_files.values_of(tmp_path, "loss")
    assert [(step, value.simple_value) for step, value in found] == [
        (1, 2.5),
        (3, 2.25),
    ]
    ((step, value),) = event_files.values_of(tmp_path, "views")
    assert step == 0
    image = Image.open(io.BytesIO(value.image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(image), VIEWS)
    ((_, value),) = event_files.values_of(tmp_path, "_hparams_/session_start_info")
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    content = value.metadata.plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(hparams) == set(config)
    assert hparams["loss.temperature"].number_value == 0.1
    assert hparams["probe.enabled"].bool_value is True
    assert hparams["loss.name"].string_value == "nt_xent"
    assert hparams["batch.micro_batch_size"].string_value == "None"
    assert hparams["log.writers"].string_value == "['tensorboard']"


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path):
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writers = open_writers(tmp_path, "tensorboard", resume_step=resume_step)
        for step in steps:
            writers.scalars(step, {"loss": float(step)})
        writers.close()
        # Names of files count seconds.
        (path,) = tmp_path.glob("events.out.tfevents.[0-9]*")
        path.rename(tmp_path / f"events.out.tfevents.start{resume_step}")
    starts = [
        event.step
        for event in event_files.read_events(tmp_path)
        if event.HasField("session_log")
    ]
    # TensorBoard drops what files before have from these steps on.
    assert starts == [1, 3]


@pytest.mark.parametrize("count", [1, 5, 9, 17])
def test_the_projector_finds_vectors_labels_and_thumbnails(tmp_path, count):
    given = points(count)
    writers = open_writers(tmp_path, "tensorboard")
    writers.embeddings(6, points(3))  # of an earlier end
    writers.embeddings(6, given)
    writers.close()
    config = (tmp_path / "projector_config.pbtxt").read_text()
    for name in ("tensors.tsv", "metadata.tsv", "sprite.png"):
        assert f'_path: "projector/{name}"' in config
    assert config.count("single_image_dim: 6\n") == 2
    folder = tmp_path / "projector"
    vectors = np.loadtxt(folder / "tensors.tsv", delimiter="\t", ndmin=2)
    np.testing.assert_allclose(vectors, given.h, rtol=1e-5)
    header, *lines = (folder / "metadata.tsv").read_text().splitlines()
    assert header == "label\timage"
    assert lines == [f"class {n % 3}\t{7 * n}" for n in range(count)]
    sprite = np.asarray(Image.open(folder / "sprite.png"))
    assert sprite.shape[0] == sprite.shape[1]
    columns = sprite.shape[1] // 6
    for number, thumbnail in enumerate(given.thumbnails):
        y, x = 6 * (number // columns), 6 * (number % columns)
        np.testing.assert_array_equal(sprite[y : y + 6, x : x + 6], thumbnail)


def test_a_grid_has_rows_of_images_with_gaps():
    tiles = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
    found = pictures.grid(tiles.repeat(3, axis=3), 3, gap=1)[..., 0]
    assert found[::3, ::3].tolist() == [[0, 1, 2], [3, 4, 0]]
    assert (found[2::3] == 255).all()
    assert (found[:, 2::3] == 255).all()


# Trouble ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["add_image", "add_scalar", "flush", "close"])
def test_a_writer_that_fails_is_given_up_once(tmp_path, caplog, monkeypatch, method):
    import tensorboardX

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(tensorboardX.SummaryWriter, method, fail)
    writer = MetricsWriter(str(tmp_path), resume_step=0, writers=["tensorboard"])
    writer.writers.image(0, "views", VIEWS)
    for step in (1, 2):
        writer.write(step, {"loss": 2.0})
    writer.close()
    assert caplog.text.count("cannot write (No space left on device) and ends") == 1
    assert "config.log.writers: 'tensorboard'" in caplog.text
    assert len((tmp_path / FILE_NAME).read_text().splitlines()) == 2


def test_a_writer_that_cannot_be_opened_is_given_up(tmp_path, caplog, monkeypatch):
    # A package without what the writer takes from it.
    monkeypatch.delitem(sys.modules, "simclr_jax.runs.writers.wandb", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", object())
    writers = open_writers(tmp_path, "wandb", "tensorboard")
    sys.modules.pop("simclr_jax.runs.writers.wandb", None)
    assert "'wandb' cannot write" in caplog.text
    writers.scalars(1, {"loss": 1.0})
    writers.close()
    assert event_files.values_of(tmp_path, "loss")


@pytest.mark.parametrize("content", ["{", "[1]", '"a"', '{"wandb": 3}', "\xff"])
def test_damaged_identifiers_begin_new_runs(tmp_path, content):
    (tmp_path / RUN_IDS).write_bytes(content.encode("latin-1"))
    writers = open_writers(tmp_path, "tensorboard")
    assert writers
    writers.close()


def test_another_plan_begins_new_runs(tmp_path):
    (tmp_path / RUN_IDS).write_text('{"wandb": "abc"}')
    plans.set_logs_aside(str(tmp_path), epath.Path(tmp_path) / "checkpoints_2")
    assert not (tmp_path / RUN_IDS).exists()
    assert (tmp_path / "plan_1" / RUN_IDS).exists()


# The key ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [("tensorbord",), ("wandb", "wandb"), "wandb", ("",), (None,), True, [["wandb"]]],
)
def test_other_names_are_refused_with_the_rule(value):
    config = base.get_config()
    with config.ignore_type():
        config.log.writers = value
    with pytest.raises(ConfigError) as caught:
        rules.validate(config)
    message = str(caught.value)
    assert message.startswith("config.log.writers=")
    assert "tensorboard, wandb, mlflow; () for none" in message


@pytest.mark.parametrize("value", [(), ("mlflow",), ["wandb", "tensorboard"]])
def test_any_names_are_allowed(value):
    config = base.get_config()
    with config.ignore_type():
        config.log.writers = value
    rules.validate(config)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_with_its_extra(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    optional.is_installed.cache_clear()
    config = config_dict.ConfigDict({"log": {"writers": ("tensorboard", name)}})
    with pytest.raises(ConfigError) as caught:
        log_writers.check_installed(config)
    monkeypatch.undo()
    optional.is_installed.cache_clear()
    assert str(caught.value) == (
        f"config.log.writers=('tensorboard', '{name}'): '{name}' needs {name}, which "
        f"`pip install 'simclr_jax[{name}]'` installs"
    )


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "not_a_package_of_anyone").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not optional.is_installed("not_a_package_of_anyone")


# Weights & Biases, MLflow -------------------------------------------------------------


def records_of_wandb(path):
    """The records of a file of W&B's offline mode: a log of LevelDB after 7 bytes."""
    content, place, block = path.read_bytes(), 7, 2**15
    record = b""
    while place + 7 <= len(content):
        left = block - place % block
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def history_of_wandb(path):
    """(step, key) -> value of the numbers in such a file, and the config."""
    from wandb.proto import wandb_internal_pb2

    history, config = {}, {}
    for data in records_of_wandb(path):
        record = wandb_internal_pb2.Record.FromString(data)
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for key, value in items.items():
            history[record.history.step.num, key] = value
        # In a record of its own, or in that of the run if it had not been sent yet.
        for item in (*record.run.config.update, *record.config.update):
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return history, config


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_X_DISABLE_STATS", "true")
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writers = open_writers(tmp_path, "wandb", resume_step=resume_step)
        writers.hparams({"loss.temperature": 0.5, "evaluation.knn_k": [20, 10]})
        writers.image(resume_step, "views", VIEWS)
        for step in steps:
            writers.scalars(step, {"loss": float(step)})
        writers.embeddings(4, points(8, width=70))
        writers.close()
        # The same run goes on.
        ids = json.loads((tmp_path / RUN_IDS).read_text())
        assert [*ids] == ["wandb"]
        found = sorted(tmp_path.glob(f"wandb/offline-run-*-{ids['wandb']}/*.wandb"))
        history, config = history_of_wandb(found[-1])
        assert config["loss.temperature"] == 0.5
        assert config["evaluation.knn_k"] == [20, 10]
        losses = {step: v for (step, key), v in history.items() if key == "loss"}
        assert losses == {step: float(step) for step in steps}
    pictures_of = [*tmp_path.glob("wandb/offline-run-*/files/media/images/views*.png")]
    np.testing.assert_array_equal(np.asarray(Image.open(pictures_of[0])), VIEWS)
    (table, *_) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    content = json.loads(table.read_text())
    assert content["columns"][:4] == ["label", "image", "thumbnail", "h0"]
    assert len(content["data"]) == 8


@pytest.fixture
def mlflow_in_files(monkeypatch):
    """The client of a folder."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    return lambda folder: MlflowClient(tracking_uri=(folder / "mlruns").as_uri())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("is_copied", [True, False])
def test_mlflow_goes_on_on_a_mounted_bucket_or_after_a_kill(
    tmp_path, monkeypatch, caplog, mlflow_in_files, is_copied
):
    from mlflow.tracking._tracking_service import utils as tracking_utils

    monkeypatch.setattr(paths, "is_mounted_bucket", lambda path: True)
    kept = tmp_path / "run"
    kept.mkdir()
    if not is_copied:  # a start that was killed before its first copy
        (kept / RUN_IDS).write_text(json.dumps({"mlflow": "0123456789abcdef" * 2}))
    for resume_step in (0, 2, 4):
        # Of places of artifacts: each start is a process of its own.
        tracking_utils._artifact_repos_cache.clear()
        writer = MetricsWriter(str(kept), resume_step=resume_step, writers=["mlflow"])
        writer.writers.hparams({"log.every_steps": resume_step})
        for step in range(resume_step + 1, resume_step + 4):
            writer.write(step, {"loss": float(step)})
        writer.writers.image(resume_step, "views", VIEWS)
        writer.close()
    assert "cannot write" not in caplog.text
    assert [*tmp_path.iterdir()] == [kept]
    client = mlflow_in_files(kept)
    experiment = client.get_experiment_by_name("simclr_jax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert json.loads((kept / RUN_IDS).read_text()) == {"mlflow": run.info.run_id}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6, 7]
    folder = kept / "mlruns" / experiment.experiment_id / run.info.run_id / "artifacts"
    # Each start has found the place of what it wrote.
    names = [path.name for path in folder.iterdir()]
    assert sorted(names) == ["views_0.png", "views_2.png", "views_4.png"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_in_files(tmp_path, caplog, mlflow_in_files):
    config = identity.flatten(identity.as_json(base.get_config()))
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writers = open_writers(tmp_path, "mlflow", resume_step=resume_step)
        writers.hparams({**config, "log.every_steps": 10 + resume_step})
        if resume_step == 0:
            writers.image(0, "views", VIEWS)
        for step in steps:
            writers.scalars(step, {"loss": float(step)})
        writers.close()
    assert "cannot write" not in caplog.text
    writers = open_writers(tmp_path, "mlflow", resume_step=4)
    writers.embeddings(4, points())
    writers.close()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    client = mlflow_in_files(tmp_path)
    experiment = client.get_experiment_by_name("simclr_jax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert json.loads((tmp_path / RUN_IDS).read_text()) == {"mlflow": run.info.run_id}
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(s, float(s)) for s in (1, 2, 3, 4)]
    assert run.data.params["loss.temperature"] == "0.1"
    assert set(config) <= set(run.data.params)
    assert run.data.params["log.every_steps"] == "10"
    assert run.data.tags["changed.log.every_steps"] == "12"
    folder = tmp_path / "mlruns" / experiment.experiment_id / run.info.run_id
    image = Image.open(folder / "artifacts" / "views_0.png")
    np.testing.assert_array_equal(np.asarray(image), VIEWS)
    embeddings = folder / "artifacts" / "embeddings_4"
    assert (embeddings / "projector_config.pbtxt").exists()
    assert len((embeddings / "projector" / "tensors.tsv").read_text().splitlines()) == 5
