"""The command: from a file to a run directory, or to an error in one line."""

import json
import os
import pathlib

import commands
import google_files
import numpy as np
import pytest
from pretraining import pretrain
from test_torchvision import GOLDEN, state_dict

import simclr_jax
from simclr_jax.configs import cifar10
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.errors import CheckpointError, ConfigError, InvalidInput
from simclr_jax.runs import atomic, directory
from simclr_jax.weights import convert, export, load_google_checkpoint


def arrays(config="r18_cifar_l3_finetune", *, form=dict, tf_format="tf1", divisor=8):
    return form(google_files.tensors(config, tf_format, divisor=divisor))


def import_run(folder, divisor):
    """(a run with a ResNet-18 of a TF1 checkpoint, what the command says of it)."""
    whole = arrays("r18_cifar_l3_finetune", divisor=divisor)
    path = google_files.write(folder / "model.ckpt-1234", whole)
    run = folder / "run"
    weights = convert.read(path)
    config = convert.complete_config(cifar10.get_config(), weights)
    return run, convert.summary(convert.write(str(run), config, weights, path))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """That of the recorded outputs."""
    return import_run(tmp_path_factory.mktemp("imported"), divisor=1)


@pytest.mark.slow
def test_run_gives_the_recorded_outputs(imported, fidelity):
    pretrained = simclr_jax.load(str(imported[0]))
    assert pretrained.step == google_files.STEP
    assert pretrained.preprocessing == Preprocessing(32, 1.0, "bicubic_legacy")
    with np.load(GOLDEN / "resnet_forward_r18_cifar.npz") as golden:
        images = golden["input"]
        for name, got in (
            ("h", pretrained.encode(images)),
            ("z", pretrained.encode(images, layer=-1)),
            ("logits_sup", pretrained.classify(images)),
        ):
            fidelity(
                f"Run converted from a TF1 checkpoint, ResNet-18 CIFAR: {name}",
                got,
                golden[f"eval/{name}"],
                of_largest=1e-5,
            )


@pytest.mark.slow
def test_its_exports_give_the_recorded_outputs(imported, tmp_path, fidelity):
    """With TensorFlow's padding and shortcuts; PyTorch's formats have neither."""
    with np.load(GOLDEN / "resnet_forward_r18_cifar.npz") as golden:
        images, h = golden["input"], golden["eval/h"]
    for name in ("safetensors", "stablehlo"):
        output = tmp_path / name
        export.export(str(imported[0]), name, str(output))
        fidelity(
            "Exports of a run converted from a TF1 checkpoint, ResNet-18 CIFAR: h",
            simclr_jax.load(str(output)).encode(images),
            h,
            of_largest=1e-5,
        )
    card = (output / "README.md").read_text()
    assert "the weights were imported (TF1 checkpoint)" in card
    with pytest.raises(ConfigError, match="first_group_projection=True"):
        export.export(str(imported[0]), "torchvision", str(tmp_path / "no"))


def test_command_says_what_it_did(tmp_path):
    run, out = import_run(tmp_path, divisor=8)
    assert "TF1 checkpoint, step 1234" in out
    assert "depth 18, width 0.125" in out
    assert "nonlinear, 3 layers, output 16" in out
    assert "65 optimizer slots" in out
    assert "may be the head's first layer" in out
    receipt = json.loads((run / "import.json").read_text())
    assert receipt["ignored"] == {"optimizer slots": 65, "bookkeeping": 1}
    assert receipt["num_classes"] == 10
    config = directory.read_config(str(run))
    assert config["encoder"]["first_group_projection"] is True
    assert config["encoder"]["max_pool_padding"] == "same"
    assert config["evaluation"]["resize"] == "bicubic_legacy"
    assert config["data"]["dataset"] == "cifar10"
    assert sorted(path.name for path in run.parent.iterdir()) == [
        "model.ckpt-1234.data-00000-of-00001",
        "model.ckpt-1234.index",
        "run",
    ]


@pytest.mark.slow
def test_run_can_be_evaluated_and_not_pretrained(imported, tmp_path):
    run = str(imported[0])
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        images = generator.integers(0, 256, (32, 32, 32, 3), np.uint8)
        np.savez(tmp_path / split, images=images, labels=np.arange(32) % 4)
    code, out, err = commands.run(
        "evaluate",
        f"--workdir={run}",
        "--protocol=knn,linear",
        "--baselines",
        f"--set=data.dataset=npz:{tmp_path}/{{split}}.npz",
        "--set=evaluation.knn_k=5",
        "--set=evaluation.batch_size=16",
        "--set=evaluation.layer=1",
        "--set=evaluation.sgd_batch_size=16",
    )
    assert code == 0, err
    assert "pretrained" in out
    (path,) = (imported[0] / "eval").glob("npz-*/knn.json")
    receipt = json.loads(path.read_text())
    assert receipt["preprocessing"]["resize"] == "bicubic_legacy"
    assert receipt["checkpoint_step"] == google_files.STEP
    assert receipt["layer"] == 1
    assert receipt["encoder_checksum_before"] == receipt["encoder_checksum_after"]

    config = cifar10.get_config()
    config.data.dataset = f"npz:{tmp_path}/{{split}}.npz"
    config.batch.batch_size = 8
    config.evaluation.batch_size = config.evaluation.sgd_batch_size = 8
    with pytest.raises(CheckpointError, match="imported weights and no state"):
        pretrain(config, run, allow_config_change=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_torchvision_named_files(kind, tmp_path):
    if kind == "pth":
        path, options = GOLDEN / "torch_moco.pth", ["--prefix=module.encoder_q."]
    else:
        import safetensors.numpy

        path, options = tmp_path / "x.safetensors", []
        narrow = {
            name: np.ascontiguousarray(array)
            for name, array in state_dict(18, width=1 / 32, classes=31).items()
        }
        safetensors.numpy.save_file(narrow, path)
    run = tmp_path / "run"
    code, out, err = commands.run(
        "convert",
        f"--input={path}",
        f"--workdir={run}",
        "--normalization=imagenet",
        "--config=configs/folder.py:images",
        "--config.image_size=64",
        *options,
    )
    assert code == 0, err
    assert "31 classes" in out
    pretrained = simclr_jax.load(str(run))
    assert pretrained.preprocessing == Preprocessing(64, 0.875, "bicubic")
    assert pretrained.encoder.normalization == "imagenet"
    assert pretrained.encode(np.zeros((2, 70, 64, 3), np.uint8)).shape == (2, 16)
    assert pretrained.classify(np.zeros((2, 70, 64, 3), np.uint8)).shape == (2, 31)


def truncate(path):
    file = pathlib.Path(f"{path}.data-00000-of-00001")
    os.truncate(file, file.stat().st_size // 2)


def fault(name, folder):
    """A faulty file and a part of the expected error."""
    content, kernel = arrays(), "base_model/conv2d_8/kernel"
    if name == "wrong shape":
        content[kernel] = content[kernel][..., 1:]
        needle = f"{kernel} (group2/block1/conv2/kernel) has shape 3x3x16x15"
    elif name == "missing variable":
        del content[kernel]
        needle = f"{kernel} (group2/block1/conv2/kernel) is missing"
    elif name == "extra variable":
        content["base_model/conv2d_21/kernel"] = content[kernel]
        needle = "base_model/conv2d_21/kernel has no place"
    else:
        needle = "cannot be read"
    path = google_files.write(folder / "model.ckpt", content)
    if name == "truncated file":
        truncate(path)
    return path, needle


FAULTS = ("wrong shape", "missing variable", "extra variable", "truncated file")


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_files_are_named(name, tmp_path):
    path, needle = fault(name, tmp_path)
    with pytest.raises(InvalidInput) as caught:
        convert.read(path)
    message = str(caught.value)
    assert message.startswith(f"file {path}")
    assert needle in message
    assert "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_faulty_files_end_with_one_line_and_leave_nothing(name, tmp_path):
    path, needle = fault(name, tmp_path)
    before = sorted(tmp_path.iterdir())
    run = tmp_path / "run"
    code, _, err = commands.run("convert", f"--input={path}", f"--workdir={run}")
    last = err.splitlines()[-1]
    assert code == 2
    assert last.startswith(f"error: file {path}")
    assert needle in last
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_an_interrupted_import_leaves_nothing_behind(tmp_path, monkeypatch):
    weights = load_google_checkpoint(google_files.write(tmp_path / "c", arrays()))
    config = convert.complete_config(cifar10.get_config(), weights)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(directory, "write_config", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert.write(str(run), config, weights, "c")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".data-00000-of-00001", ".index"]  # fmt: skip
    run.mkdir()
    convert.write(str(run), config, weights, "c")
    assert simclr_jax.load(str(run)).encoder.depth == 18
    with pytest.raises(ConfigError, match=f"--workdir={run}: must be new or empty"):
        convert.write(str(run), config, weights, "c")
    with pytest.raises(ConfigError, match="is a file"):
        atomic.check_free(str(run / "config.json"), flag="workdir")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("c", {"prefix": "module."}, r"--prefix=module\.: must be left out"),
        ("c", {"normalization": "none"}, "--normalization=none: must be left out"),
        ("torch_moco.pth", {"ema": True}, "--ema: must be left out"),
        ("torch_moco.pth", {}, "--normalization: must be given"),
        ("typo.pth", {"normalization": "none"}, "there is no such file"),
        ("README.md.pth", {"normalization": "none"}, "is not a PyTorch file"),
    ],
)
def test_options_that_do_not_go_with_the_file(path, options, message, tmp_path):
    folder = GOLDEN
    if path == "README.md.pth":
        folder = tmp_path
        (folder / path).write_text("text")
    with pytest.raises(InvalidInput, match=message):
        convert.read(str(folder / path), **options)


def test_settings_of_the_weights_replace_those_of_the_config(tmp_path):
    weights = load_google_checkpoint(google_files.write(tmp_path / "c", arrays()))
    config = cifar10.get_config()
    config.encoder.se_ratio = 0.25
    config.encoder.batch_norm_epsilon = 0.1
    config = convert.complete_config(config, weights)
    assert config.encoder.se_ratio == 0
    assert config.encoder.batch_norm_epsilon == 1e-5


def test_folders_that_cannot_be_a_run(tmp_path, monkeypatch):
    weights = load_google_checkpoint(google_files.write(tmp_path / "c", arrays()))
    config = convert.complete_config(cifar10.get_config(), weights)
    monkeypatch.chdir(tmp_path)
    for workdir in (".", str(tmp_path), "ftp://bucket/run"):
        with pytest.raises(ConfigError, match=f"--workdir={workdir}: must"):
            atomic.check_free(workdir, flag="workdir")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for workdir in ("link", "new/deep/run/"):
        convert.write(workdir, config, weights, "c")
        assert simclr_jax.load(workdir).encoder.depth == 18
