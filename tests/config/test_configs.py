"""Every config file runs, and every key of the base config does something."""

import pathlib

import numpy as np
import pytest
from ml_collections import config_dict
from pretraining import pretrain

from simclr_jax import losses, optim
from simclr_jax.config import identity, resolve, rules
from simclr_jax.configs import (
    base,
    cifar10,
    cifar100,
    distill,
    finetune,
    folder,
    imagenet,
    imagenette,
    presets,
    simclr_v1,
    simclr_v2,
    smoke,
    stl10,
)
from simclr_jax.data.sampling import draws
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation import loop, protocols
from simclr_jax.runs import directory
from simclr_jax.training import build, step

CONFIGS = {
    "base": base.get_config(),
    "imagenet": imagenet.get_config(),
    "imagenet:18x0.25": imagenet.get_config("18x0.25"),
    "cifar10": cifar10.get_config(),
    "cifar10:resnet50": cifar10.get_config("resnet50"),
    "cifar10:200epochs": cifar10.get_config("200epochs"),
    "cifar10:800epochs": cifar10.get_config("800epochs"),
    "cifar100": cifar100.get_config(),
    "imagenette": imagenette.get_config(),
    "simclr_v1:50x4": simclr_v1.get_config("50x4"),
    "simclr_v2:152x3+sk": simclr_v2.get_config("152x3+sk"),
    "stl10": stl10.get_config(),
    "folder": folder.get_config("images"),
    "smoke": smoke.get_config(),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_valid_and_builds_its_parts(name):
    config = CONFIGS[name]
    rules.validate(config)
    config = resolve.resolve(config, num_examples=50_000)
    parts = step.pretraining_parts(config, num_classes=10)
    assert parts.model.encoder.depth == config.encoder.depth
    assert identity.flatten(config).keys() == identity.flatten(CONFIGS["base"]).keys()


@pytest.mark.parametrize(
    ("config", "group"),
    [
        (finetune.get_config("cifar10,0.1"), "finetune"),
        (finetune.get_config("imagenet"), "finetune"),
        (distill.get_config("cifar10"), "distill"),
    ],
)
def test_configs_of_further_training_have_one_more_group(config, group):
    rules.validate(config)
    more = identity.flatten(config).keys() - identity.flatten(CONFIGS["base"])
    assert more == {key for key in more if key.startswith(f"{group}.")}
    assert more
    # What is None can still be set on the command line.
    assert config.data.get_type("data_dir") is str
    assert config.schedule.get_type("train_steps") is int
    assert config.batch.get_type("micro_batch_size") is int


def test_fine_tuning_on_imagenet_takes_the_official_shares():
    for share, part, epochs in ((0.01, "1pct", 60), (0.1, "10pct", 30)):
        config = finetune.get_config(f"imagenet,{share}")
        assert config.data.dataset == f"imagenet2012_subset/{part}"
        assert config.finetune.label_fraction == 1
        assert config.schedule.train_epochs == epochs
    config = finetune.get_config("imagenet,0.5")
    assert config.data.dataset == "imagenet2012"
    assert config.finetune.label_fraction == 0.5


@pytest.mark.parametrize("argument", ["nothing,0.1", "cifar10,many"])
def test_fine_tuning_of_what_is_not_there_is_refused(argument):
    with pytest.raises(ValueError, match="must be NAME,SHARE"):
        finetune.get_config(argument)


def test_every_config_file_is_tested():
    files = {path.stem for path in pathlib.Path(base.__file__).parent.glob("*.py")}
    elsewhere = {"__init__", "presets", "finetune", "distill"}
    assert files - elsewhere == {name.split(":")[0] for name in CONFIGS}


@pytest.mark.parametrize(
    ("argument", "depth", "width", "sk_ratio", "epochs"),
    [
        ("101x2", 101, 2.0, 0.0, 800),
        ("50", 50, 1.0, 0.0, 800),
        ("18x0.25", 18, 0.25, 0.0, 800),
        ("152x3+sk", 152, 3.0, 0.0625, 800),
        ("50x1+sk,100epochs", 50, 1.0, 0.0625, 100),
    ],
)
def test_argument_picks_the_encoder(argument, depth, width, sk_ratio, epochs):
    config = simclr_v2.get_config(argument)
    assert config.encoder.depth == depth
    assert config.encoder.width == width
    assert config.encoder.sk_ratio == sk_ratio
    assert config.schedule.train_epochs == epochs
    assert config.schedule.warmup_epochs == pytest.approx(0.05 * epochs)


@pytest.mark.parametrize("argument", ["large", "50x", "50+se", "50x1,100", "x2", ""])
def test_other_arguments_are_refused(argument):
    for config_file in (imagenet, simclr_v1, simclr_v2):
        with pytest.raises(ValueError, match=r"_?v?\d?\.py:.*must be DEPTH"):
            config_file.get_config(argument)
    with pytest.raises(ValueError, match=r"cifar10\.py:"):
        cifar10.get_config(argument)


@pytest.mark.parametrize(
    ("config", "peak_rate"),
    [(simclr_v1, 4.8), (simclr_v2, 6.4), (imagenet, 4.8), (cifar10, 2.0)],
)
def test_peak_rates_are_the_published_ones(config, peak_rate):
    config = resolve.resolve(config.get_config(), num_examples=1_281_167)
    parts = step.pretraining_parts(config, num_classes=None)
    rate = float(parts.schedule(config.schedule.warmup_steps))
    assert rate == pytest.approx(peak_rate)


def test_presets_differ_where_the_papers_do():
    first, second = base.get_config(), base.get_config()
    presets.simclr_v1(first)
    presets.simclr_v2(second)
    changes = identity.differing_keys(first.to_dict(), second.to_dict())
    assert {change.split(":")[0] for change in changes} == {
        "augment.color_jitter.brightness_mode",
        "head.num_layers",
        "optimizer.learning_rate",
        "optimizer.scaling",
        "optimizer.weight_decay",
        "schedule.warmup_epochs",
    }


def test_cifar10_has_the_learning_rate_of_the_reference():
    config = resolve.resolve(cifar10.get_config(), num_examples=50_000)
    parts = step.pretraining_parts(config, num_classes=10)
    assert config.encoder.stem == "cifar"
    assert config.schedule.warmup_steps == 970
    assert float(parts.schedule(970)) == pytest.approx(2.0)


class Recorder:
    """A config that notes which leaves are read."""

    def __init__(self, config, seen: set[str], prefix: str = "") -> None:
        self.__dict__.update(_config=config, _seen=seen, _prefix=prefix)

    def __getitem__(self, name):
        value = self._config[name]
        if isinstance(value, config_dict.ConfigDict):
            return Recorder(value, self._seen, f"{self._prefix}{name}.")
        self._seen.add(self._prefix + name)
        return value

    __getattr__ = __getitem__

    def __setitem__(self, name, value):
        self._config[name] = value

    __setattr__ = __setitem__

    def __contains__(self, name):
        return name in self._config

    def keys(self):
        return self._config.keys()

    def unlock(self):
        self._config.unlock()
        return self

    def ignore_type(self):
        return self._config.ignore_type()

    def to_dict(self):
        return self._config.to_dict()

    def copy_and_resolve_references(self):
        copy = self._config.copy_and_resolve_references()
        return Recorder(copy, self._seen, self._prefix)


@pytest.mark.slow
def test_no_key_is_dead(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        images = generator.integers(0, 256, (48, 8, 8, 3), np.uint8)
        np.savez(tmp_path / split, images=images, labels=np.arange(48) % 3)
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "data.dataset": f"npz:{tmp_path}/{{split}}.npz",
            "image_size": 8,
            "encoder.depth": 10,
            "encoder.width": 0.0625,
            "batch.batch_size": 16,
            "schedule.train_steps": None,
            "schedule.warmup_steps": None,
            "schedule.train_epochs": 0.5,
            "schedule.warmup_epochs": 0.0,
            "evaluation.batch_size": 16,
            "evaluation.sgd_batch_size": 16,
            "evaluation.sgd_epochs": 1.0,
            "evaluation.lbfgs_steps": 2,
            "evaluation.every_steps": 1,
            "evaluation.bank_images": 30,
        }
    )
    config.augment.operations = tuple(draws.COUNTS)

    seen: set[str] = set()
    check, write = directory.check, directory.write_config
    as_json, override = identity.as_json, loop.with_overrides
    # What looks at every key whatever it means does not count.
    monkeypatch.setattr(rules, "validate", lambda config: None)
    monkeypatch.setattr(rules, "check_devices", lambda config, devices, group: None)
    monkeypatch.setattr(
        directory,
        "check",
        lambda workdir, config, *rest, **kwargs: check(
            workdir, config._config, *rest, **kwargs
        ),
    )
    monkeypatch.setattr(
        directory,
        "write_config",
        lambda workdir, config: write(workdir, config._config),
    )
    monkeypatch.setattr(
        identity,
        "as_json",
        lambda config: as_json(getattr(config, "_config", config)),
    )
    monkeypatch.setattr(
        loop,
        "with_overrides",
        lambda *arguments: Recorder(override(*arguments), seen),
    )
    workdir = str(tmp_path / "run")
    pretrain(Recorder(config, seen), workdir)
    # The others are `linear` on other images or layers.
    repeated = {*protocols.SHARES, "layers"}
    loop.evaluate(workdir, [p for p in protocols.PROTOCOLS if p not in repeated])
    for name in losses.LOSSES:
        config.loss.name = name
        step.make_contrastive(Recorder(config, seen), num_classes=3)
    for name in optim.OPTIMIZERS:
        config.optimizer.name = name
        build.make_optimizer(Recorder(config.optimizer, seen, "optimizer."), 0.1)
    assert set(identity.flatten(base.get_config())) - seen == set()


def test_every_augmentation_has_its_settings():
    choices = {"operations", "placement", "host_views"}
    groups = {*base.get_config().augment} - choices
    assert groups == {*draws.COUNTS}


BAD_VALUES = {
    "seed": -1,
    "image_size": 4,
    "data.threads": 0,
    "data.parallel_reads": 0,
    "data.memory_mb": 0,
    "data.in_memory_mb": -1,
    "data.block_size": 0,
    "data.on_bad_record": "skip",
    "data.bad_records_max": 1.5,
    "augment.placement": "gpu",
    "augment.host_views": "numba",
    "batch.batch_size": 1,
    "batch.micro_batch_size": 1000,
    "parallel.remat": "all",
    "parallel.gradient_dtype": "float16",
    "augment.crop.area_min": 0.0,
    "augment.crop.area_max": 1.5,
    "augment.crop.sampler": "centre",
    "augment.flip.probability": 1.1,
    "augment.operations": ("crop", "crop"),
    "augment.color_jitter.hue": 0.6,
    "augment.color_jitter.strength": -1.0,
    "augment.blur.sigma_min": 3.0,
    "encoder.depth": 20,
    "encoder.width": 0.0,
    "encoder.stem": "tiny",
    "encoder.sk_ratio": 1.5,
    "encoder.se_ratio": -0.25,
    "encoder.normalization": "cifar",
    "encoder.compute_dtype": "float16",
    "encoder.batch_norm_momentum": 1.0,
    "head.kind": "mlp",
    "head.num_layers": 0,
    "loss.name": "triplet",
    "loss.form": "ring",
    "loss.temperature": 0.0,
    "loss.margin": 0.0,
    "loss.weight_temperature": -0.5,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 0.0,
    "optimizer.scaling": "cubic",
    "optimizer.weight_decay": -1e-4,
    "optimizer.clip_norm": 0.0,
    "optimizer.on_nonfinite": "ignore",
    "optimizer.max_skipped_steps": 0,
    "schedule.train_epochs": 0.0,
    "schedule.train_steps": 0,
    "schedule.warmup_steps": -1,
    "schedule.extend": "repeat",
    "schedule.extend_step": 0,
    "schedule.extend_learning_rate": 0.0,
    "checkpoint.every_steps": 0,
    "checkpoint.every_secs": 0.0,
    "log.every_steps": 0,
    "log.writers": ("tensorbord",),
    "evaluation.crop_proportion": 0.0,
    "evaluation.l2_penalties": (-1.0,),
    "evaluation.resize": "bilinear",
    "evaluation.layer": -2,
    "finetune.label_fraction": 0.0,
    "finetune.layer": -2,
    "finetune.after_group": 5,
    "finetune.batch_norm": "local",
    "distill.temperature": 0.0,
    "distill.labelled_weight": 1.5,
    "distill.label_fraction": 2.0,
    "evaluation.knn_k": (20, 0),
}


@pytest.mark.parametrize("key", BAD_VALUES)
def test_bad_values_name_key_value_and_rule(key):
    further = {"finetune": finetune.get_config, "distill": distill.get_config}
    config = further.get(key.partition(".")[0], base.get_config)()
    config.update_from_flattened_dict({key: BAD_VALUES[key]})
    with pytest.raises(ConfigError) as error:
        rules.validate(config)
    message = str(error.value)
    assert message.startswith(f"config.{key}={BAD_VALUES[key]!r}: ")
    assert "must" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("operations", "rule"),
    [
        ((), "must name one or more"),
        (("flip", "crop"), "'crop' must be the first, or left out"),
        (("crop", "flip", "crop"), "each once"),
        (("crop", "twirl"), "'twirl' must be one of "),
    ],
)
def test_operations_that_make_no_view(operations, rule):
    config = base.get_config()
    config.augment.operations = operations
    with pytest.raises(ConfigError) as error:
        rules.validate(config)
    message = str(error.value)
    assert message.startswith(f"config.augment.operations={operations!r}: ")
    assert rule in message
    assert "\n" not in message


def test_blocks_are_for_what_is_read():
    config = base.get_config()
    config.data.block_size = 16
    for device in ("host", "host_crop"):
        config.augment.placement = device
        rules.validate(config)
    config.augment.placement = "accelerator"
    with pytest.raises(ConfigError) as error:
        rules.validate(config)
    message = str(error.value)
    assert message.startswith("config.data.block_size=16: must be 1 where ")
    assert "config.augment.placement='accelerator'" in message
    assert "\n" not in message


def test_blocks_have_to_leave_a_batch():
    config = base.get_config()
    config.batch.batch_size, config.data.block_size = 64, 40
    with pytest.raises(ConfigError) as error:
        resolve.resolve(config, num_examples=79)
    message = str(error.value)
    assert message.startswith("config.data.block_size=40: leaves no batch of 64")
    assert "79 images" in message
    assert "\n" not in message
    config.schedule.train_epochs, config.schedule.warmup_epochs = 3, 0
    # 120 of 159 images are in whole blocks: one batch an epoch, and not two.
    assert resolve.resolve(config, num_examples=159).schedule.train_steps == 3


def test_a_loss_without_blocks_cannot_have_them():
    config = base.get_config()
    config.loss.name, config.loss.form = "nt_logistic", "streaming"
    with pytest.raises(ConfigError, match=r"config\.loss\.form='streaming': .*has no"):
        step.make_contrastive(config, num_classes=None)


def test_devices_must_share_every_batch_evenly():
    config = base.get_config()
    rules.check_devices(config, 16, "batch")
    config.batch.micro_batch_size = 64
    rules.check_devices(config, 16, "batch")
    with pytest.raises(
        ConfigError, match=r"config\.batch\.micro_batch_size=64: must be"
    ):
        rules.check_devices(config, 128, "batch")
    config.batch.micro_batch_size = None
    with pytest.raises(ConfigError, match=r"config\.batch\.batch_size=4096: must be"):
        rules.check_devices(config, 48, "batch")
    with pytest.raises(ConfigError, match=r"config\.evaluation\.batch_size=1024: must"):
        rules.check_devices(config, 2048, "evaluation")
    # What pretraining does not use does not stop it.
    rules.check_devices(config, 2048, "batch")


@pytest.mark.parametrize(
    ("devices", "group", "parts", "groups"),
    [(1, None, 1, 1), (1, None, 2, 2), (8, None, 3, 3), (8, 2, 1, 4), (8, 2, 3, 12)],
)
def test_parts_of_the_batch_with_their_own_statistics(devices, group, parts, groups):
    config = base.get_config()
    config.batch.batch_size, config.batch.micro_batch_size = 96, 48
    config.batch.norm_group, config.batch.norm_parts = group, parts
    rules.check_devices(config, devices, "batch")
    assert rules.num_norm_groups(config, devices) == groups
    unit = rules.image_unit(config, devices)
    assert 48 % unit == unit % groups == unit % devices == 0
    assert unit in (devices, groups, 24)  # and no larger than it must be
    config.batch.norm_parts = 5
    with pytest.raises(ConfigError, match=r"norm_parts=5: must divide the 48 images"):
        rules.check_devices(config, devices, "batch")
    rules.check_devices(config, devices, "evaluation")


def test_fine_tuning_normalises_its_whole_batch():
    pretrained = cifar10.get_config("200epochs")
    assert pretrained.batch.norm_parts == 2
    tuned = finetune.adapt(pretrained, 0.1)
    tuned.batch.batch_size = 63  # as fitted to few labels
    rules.check_devices(tuned, 1, "batch")


def test_how_a_run_is_spread_is_no_other_experiment():
    old, new = base.get_config().to_dict(), base.get_config().to_dict()
    new["parallel"]["shard_state"] = True
    new["parallel"]["remat"] = "blocks"
    new["loss"]["form"] = "global"
    new["data"].update(threads=3, parallel_reads=100, memory_mb=1000)
    assert identity.differing_keys(old, new) == []
    # But all processes must do the same.
    assert identity.fingerprint(old) != identity.fingerprint(new)
    new["batch"]["micro_batch_size"] = 256
    assert identity.differing_keys(old, new) == ["batch.micro_batch_size: None -> 256"]


def test_what_decides_over_the_images_of_a_step_is_another_experiment():
    old, new = base.get_config().to_dict(), base.get_config().to_dict()
    new["data"].update(block_size=16, in_memory_mb=0)
    new["augment"]["placement"] = "host_crop"
    assert identity.differing_keys(old, new) == [
        "augment.placement: 'host' -> 'host_crop'",
        "data.block_size: 1 -> 16",
        "data.in_memory_mb: 1024 -> 0",
    ]


def test_hosts_may_have_other_buffers():
    old, new = base.get_config().to_dict(), base.get_config().to_dict()
    own = {"threads": 3, "parallel_reads": 100, "memory_mb": 1000, "data_dir": "x"}
    new["data"].update(own)
    assert identity.fingerprint(old) == identity.fingerprint(new)
    new["data"]["block_size"] = 16
    assert identity.fingerprint(old) != identity.fingerprint(new)


def test_a_config_without_a_key_is_refused():
    config = base.get_config().unlock()
    del config.loss["temperature"]
    with pytest.raises(ConfigError, match=r"config\.loss\.temperature: missing"):
        rules.validate(config)


def test_stems_follow_the_image_size_and_a_mismatch_is_told(caplog):
    config = base.get_config()
    config.image_size = 32
    assert resolve.resolve(config, num_examples=5000).encoder.stem == "cifar"
    config.image_size = 33
    assert resolve.resolve(config, num_examples=5000).encoder.stem == "imagenet"
    assert not caplog.records
    config.encoder.stem = "cifar"
    resolve.resolve(config, num_examples=5000)
    assert "config.encoder.stem" in caplog.text


def test_a_kernel_of_one_pixel_is_told(caplog):
    config = base.get_config()
    config.image_size = 20
    resolve.resolve(config, num_examples=5000)
    assert not caplog.records
    config.image_size = 19
    resolve.resolve(config, num_examples=5000)
    assert "config.augment.blur.kernel_fraction=0.1: " in caplog.text
    config.augment.operations = ("crop",)
    caplog.clear()
    resolve.resolve(config, num_examples=5000)
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 2**31}, r"warmup_steps=2147483648: must be a whole number"),
        ({"train_epochs": 1e6}, r"train_epochs=1000000.0: makes 250000000000 steps"),
    ],
)
def test_steps_are_counted_in_32_bits(changes, message):
    config = base.get_config()
    config.schedule.update(changes)
    config.image_size, config.batch.batch_size = 224, 4
    with pytest.raises(ConfigError, match=message):
        _resolved(config)


def _resolved(config):
    rules.validate(config)
    return resolve.resolve(config, num_examples=1_000_000)


def test_hashes_and_differences():
    old, new = base.get_config().to_dict(), base.get_config().to_dict()
    assert identity.config_hash(old) == identity.config_hash(new)
    new["log"]["every_steps"] = 1
    new["data"]["data_dir"] = "elsewhere"
    assert identity.differing_keys(old, new) == []
    new["loss"]["temperature"] = 0.2
    assert identity.differing_keys(old, new) == ["loss.temperature: 0.1 -> 0.2"]
    assert identity.config_hash(old) != identity.config_hash(new)


def test_a_key_that_a_later_format_added_leaves_hashes_as_they_were():
    old, new = base.get_config().to_dict(), base.get_config().to_dict()
    for name in ("clip_norm", "on_nonfinite", "max_skipped_steps"):
        del old["optimizer"][name]
    for name in ("extend", "extend_step", "extend_learning_rate"):
        del old["schedule"][name]
    assert identity.config_hash(old) == identity.config_hash(new)
    new["optimizer"].update(on_nonfinite="skip", max_skipped_steps=3)
    assert identity.config_hash(old) == identity.config_hash(new)
    new["optimizer"]["clip_norm"] = 1.0
    assert identity.config_hash(old) != identity.config_hash(new)


def test_what_happens_at_a_step_that_is_not_finite_may_change():
    old, new = base.get_config().to_dict(), base.get_config().to_dict()
    new["optimizer"].update(on_nonfinite="skip", max_skipped_steps=3)
    assert identity.differing_keys(old, new) == []
    new["optimizer"]["clip_norm"] = 1.0
    assert identity.differing_keys(old, new) == ["optimizer.clip_norm: None -> 1.0"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extend": "restart"}, r"extend_step=None: must be set"),
        ({"extend_step": 5}, r"extend_step=5: must be left out"),
        ({"extend_learning_rate": 0.1}, r"extend_learning_rate=0.1: must be left out"),
        (
            {"extend": "constant", "extend_step": 5},
            r"extend_learning_rate=None: must be set",
        ),
    ],
)
def test_an_extension_of_the_schedule_must_be_complete(settings, message):
    config = base.get_config()
    config.schedule.update(settings)
    with pytest.raises(ConfigError, match=r"config\.schedule\." + message):
        rules.validate(config)


def test_a_schedule_is_extended_before_its_end():
    config = base.get_config()
    config.schedule.update(extend="restart", extend_step=300, train_steps=301)
    rules.validate(config)
    assert resolve.resolve(config, num_examples=5000).schedule.extend_step == 300
    config.schedule.train_steps = 300
    with pytest.raises(ConfigError, match=r"extend_step=300: must be below .*=300"):
        resolve.resolve(config, num_examples=5000)


def test_the_rate_of_an_extension_is_scaled_with_the_batch():
    config = base.get_config()
    config.schedule.update(
        extend="constant",
        extend_step=300,
        extend_learning_rate=0.01,
        train_steps=500,
        warmup_steps=0,
    )
    schedule = build.make_schedule(config)
    np.testing.assert_allclose(schedule(0), 0.075 * 64)
    np.testing.assert_allclose(schedule(400), 0.01 * 64)
    tuned = finetune.adapt(config, 0.1).schedule
    assert (tuned.extend, tuned.extend_step) == ("stretch", None)
    assert tuned.extend_learning_rate is None
