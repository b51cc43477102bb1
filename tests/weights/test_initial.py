"""`pretrain --init_from`: what is taken, what is refused, and resuming."""

import jax
import numpy as np
import pytest
import torch_writer
from ml_collections import config_dict
from test_torchvision import state_dict

from simclr_jax.configs import smoke
from simclr_jax.errors import ConfigError, DataError, InvalidInput
from simclr_jax.runs import directory
from simclr_jax.training import build, loop
from simclr_jax.weights import convert, export, initial

PREFIX = "module.backbone."


def tiny_config(**changes):
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": 8,
            "encoder.depth": 10,
            "encoder.width": 1 / 16,
            "encoder.normalization": "imagenet",
            "batch.batch_size": 16,
            "evaluation.batch_size": 64,
            "schedule.train_steps": 4,
            "schedule.warmup_steps": 0,
            "checkpoint.every_steps": 2,
            "log.writers": (),
            **changes,
        }
    )
    return config


def torch_file(path, **settings):
    settings = {"depth": 10, "width": 1 / 16, "stem": "cifar", **settings}
    arrays = state_dict(settings.pop("depth"), **settings)
    content = {PREFIX + name: array for name, array in arrays.items()}
    return torch_writer.save({"teacher": content}, path)


@pytest.mark.parametrize(
    ("changes", "needles"),
    [
        (
            {"encoder.width": 1 / 8},
            [
                "encoder.width=0.125 (weights: 0.0625)",
                "has shape 8 (weights: 4)",
                "set --config.encoder.width=0.0625",
            ],
        ),
        (
            {"encoder.depth": 18, "encoder.batch_norm_epsilon": 1e-3},
            [
                "encoder.depth=18 (weights: 10)",
                "(weights: none)",
                "--config.encoder.batch_norm_epsilon=1e-05",
            ],
        ),
        (
            {"image_size": 64},
            [
                "config.encoder.stem=imagenet (weights: cifar)",
                "params/stem/conv1/kernel has shape 7x7x3x4 (weights: 3x3x3x4)",
                "set --config.encoder.stem=cifar",
            ],
        ),
        (
            {"encoder.first_group_projection": True},
            ["group1/block1/shortcut", "set --config.encoder.first_group_projection=F"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, needles, tmp_path):
    path = torch_file(tmp_path / "net.pth")
    with pytest.raises(ConfigError) as caught:
        initial.open_for(tiny_config(**changes), path, str(tmp_path / "run"))
    line = str(caught.value)
    assert line.startswith(f"--init_from={path}: does not fit: ")
    for needle in needles:
        assert needle in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "theirs"), [("normalization", "none"), ("max_pool_padding", "same")]
)
def test_what_no_shape_shows_is_compared_too(key, theirs):
    config = tiny_config(**{"image_size": 64})
    config.encoder.stem = "imagenet"
    settings = build.encoder_settings(config)
    initial._check_fit("x", config, settings)
    with pytest.raises(ConfigError, match=f"set --config.encoder.{key}={theirs}"):
        initial._check_fit("x", config, {**settings, key: theirs})
    # Without a max-pool its padding changes nothing.
    config.encoder.stem = settings["stem"] = "cifar"
    settings["max_pool_padding"] = "same"
    initial._check_fit("x", config, settings)


def test_path_and_checksum_are_recorded_and_held(tmp_path, caplog):
    path, run = torch_file(tmp_path / "net.pth"), str(tmp_path / "run")
    config = tiny_config()
    weights = initial.open_for(config, path, run)
    want = convert.read(path, normalization="imagenet").variables
    jax.tree.map(np.testing.assert_array_equal, weights.variables, want)
    assert "does not record how its images were normalized" in caplog.text
    assert config.pretrain.init_from == path
    assert len(config.pretrain.init_checksum) == 64
    (tmp_path / "run").mkdir()
    directory.write_config(run, config)

    # Without a checkpoint the weights are read again, and must be the same.
    again = tiny_config()
    assert initial.open_for(again, None, run) is not None
    assert again.pretrain == config.pretrain
    changed = state_dict(10, width=1 / 16, stem="cifar")
    changed["bn1.weight"] = changed["bn1.weight"] * 2
    torch_writer.save(changed, path)
    with pytest.raises(DataError, match="has other weights than when the run"):
        initial.open_for(tiny_config(), path, run)

    # With one, they are not read at all.
    step = tmp_path / "run" / "checkpoints" / "2"
    step.mkdir(parents=True)
    (step / "_CHECKPOINT_METADATA").write_text("{}")
    (tmp_path / "net.pth").unlink()
    for flag in (None, path):
        resumed = tiny_config()
        assert initial.open_for(resumed, flag, run) is None
        assert resumed.pretrain == config.pretrain

    # Another path is refused.
    other = str(tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=f"holds a run that started from {path}; "):
        initial.open_for(tiny_config(), other, run)


def test_a_run_from_random_weights_stays_one(tmp_path):
    directory.write_config(str(tmp_path), tiny_config())
    config = tiny_config()
    assert initial.open_for(config, None, str(tmp_path)) is None
    assert "pretrain" not in config
    with pytest.raises(ConfigError, match="a run that started from random weights"):
        initial.open_for(config, "x.pth", str(tmp_path))


@pytest.mark.parametrize("kind", ["nothing", "several networks", "text", "stablehlo"])
def test_bad_sources(kind, tmp_path):
    path = str(tmp_path / "x.pth")
    if kind == "several networks":
        arrays = state_dict(10, width=1 / 16)
        torch_writer.save({"student": arrays, "teacher": arrays}, path)
    elif kind == "text":
        (tmp_path / "x.pth").write_text("text")
    elif kind == "stablehlo":
        (tmp_path / "x.pth").mkdir()
        (tmp_path / "x.pth" / "encoder.json").write_text('{"format": "stablehlo"}')
    with pytest.raises(InvalidInput) as caught:
        initial.open_for(tiny_config(), path, str(tmp_path / "run"))
    assert path in str(caught.value)
    if kind == "several networks":
        assert "--key=teacher" in str(caught.value)


# Runs ---------------------------------------------------------------------------------


def pretrain(path, workdir, **settings):
    changes = settings.pop("changes", {})
    job = initial.pretraining_job(tiny_config(**changes), path, str(workdir))
    return loop.run(job, str(workdir), **settings)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run."""
    run = tmp_path_factory.mktemp("source") / "run"
    return run, pretrain(None, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["run", "checkpoint", "safetensors", "torchvision", "converted", "file"]
)
def test_a_run_starts_from_every_kind_of_weights(kind, source, tmp_path, caplog):
    caplog.set_level("INFO")
    run, state = source
    path = str(run)
    if kind == "checkpoint":
        path = str(run / "checkpoints" / "4")
    elif kind in ("safetensors", "torchvision"):
        path = str(tmp_path / "export")
        width = {"encoder.width": 1.0} if kind == "torchvision" else {}
        if width:
            run = tmp_path / "wide"
            state = pretrain(None, run, changes=width)
        export.export(str(run), kind, path)
    elif kind in ("converted", "file"):
        path = torch_file(tmp_path / "net.pth")
        imported = convert.read(path, normalization="imagenet")
        variables = imported.variables
        if kind == "converted":
            config = convert.complete_config(tiny_config(), imported)
            path = str(tmp_path / "converted")
            convert.write(path, config, imported, "net.pth")
    if kind not in ("converted", "file"):
        variables = {
            "params": state.params["encoder"],
            "batch_stats": state.batch_stats["encoder"],
        }
    wide = {"encoder.width": 1.0} if kind == "torchvision" else {}
    job = initial.pretraining_job(tiny_config(**wide), path, str(tmp_path / "new"))
    params, stats = job.parts.model.init(jax.random.key(0), np.zeros((1, 8, 8, 3)))
    drawn = initial.finetuning.TrainState(0, params, stats, None)
    got = job.initialize(drawn)
    assert_equal(got.params["encoder"], variables["params"])
    assert_equal(got.batch_stats["encoder"], variables["batch_stats"])
    if kind in ("run", "checkpoint"):
        assert_equal(got.params["head"], state.params["head"])
        assert "encoder and projection head taken; optimizer" in caplog.text
    else:
        assert_equal(got.params["head"], drawn.params["head"])
        assert "projection head (the weights have none), optimizer" in caplog.text
    assert_equal(got.params["probe"], drawn.params["probe"])


@pytest.mark.slow
def test_a_head_of_another_size_starts_fresh(source, tmp_path, caplog):
    caplog.set_level("INFO")
    changes = {"head.output_dim": 24}
    job = initial.pretraining_job(
        tiny_config(**changes), str(source[0]), str(tmp_path / "new")
    )
    assert job.initialize is not None
    assert "projection head (does not fit: " in caplog.text


@pytest.mark.slow
def test_resuming_is_bit_for_bit_and_reads_the_source_no_more(source, tmp_path):
    path = torch_file(tmp_path / "net.pth")
    whole = pretrain(path, tmp_path / "whole")
    pretrain(path, tmp_path / "parts", last_step=2)
    (tmp_path / "net.pth").unlink()
    resumed = pretrain(path, tmp_path / "parts")
    assert_equal(whole.params, resumed.params)
    assert_equal(whole.opt_state, resumed.opt_state)
    random = source[1].params["encoder"]
    with pytest.raises(AssertionError):
        assert_equal(whole.params["encoder"], random)
    recorded = directory.read_config(str(tmp_path / "parts"))["pretrain"]
    assert recorded["init_from"] == path
    assert config_dict.ConfigDict(recorded).init_checksum
