"""Files in the layouts of other PyTorch codebases, against torchvision's names."""

import json
import re

import jax
import numpy as np
import pytest
import torch_writer
from safetensors.numpy import save_file
from test_torchvision import state_dict

from simclr_jax.errors import ConfigError, DataError
from simclr_jax.models import create_encoder
from simclr_jax.weights import convert, from_torchvision, torch_layouts
from simclr_jax.weights.layers import Structure
from simclr_jax.weights.named_tensors import place

ARRAYS = state_dict(10, width=1 / 32, classes=7)
BACKBONE = {name: a for name, a in ARRAYS.items() if not name.startswith("fc.")}
COUNTER = np.array(5, np.int64)


def prefixed(prefix, arrays=BACKBONE, scale=1):
    return {f"{prefix}{name}": array * scale for name, array in arrays.items()}


def sequential(prefix, *, offset=4, shortcut="downsample"):
    """Numbers of nn.Sequential: the first group is child `offset`."""

    def renamed(name):
        for group in range(1, 5):
            name = name.replace(f"layer{group}.", f"{group + offset - 1}.")
        name = re.sub(r"^conv1\.", "0.", re.sub(r"^bn1\.", "1.", name))
        return prefix + name.replace("downsample", shortcut)

    return {renamed(name): array for name, array in BACKBONE.items()}


def hugging_face(prefix=""):
    def renamed(name):
        name = re.sub(r"layer(\d)\.(\d)\.", lambda m: stage(m[1], m[2]), name)
        name = re.sub(r"(conv|bn)(\d)\.", lambda m: layer(m[1], m[2]), name)
        name = name.replace("downsample.0", "shortcut.convolution")
        name = name.replace("downsample.1", "shortcut.normalization")
        if not name.startswith("encoder"):
            name = name.replace("layer.0", "embedder.embedder")
        return prefix + name

    def stage(group, block):
        return f"encoder.stages.{int(group) - 1}.layers.{block}."

    def layer(kind, number):
        kind = {"conv": "convolution", "bn": "normalization"}[kind]
        return f"layer.{int(number) - 1}.{kind}."

    return {renamed(name): array for name, array in BACKBONE.items()}


CLASSIFIER = {
    "classifier.1.weight": ARRAYS["fc.weight"],
    "classifier.1.bias": ARRAYS["fc.bias"],
}
EXTRA = {"projection_head.0.weight": np.ones((3, 16), np.float32), "x": COUNTER}
MOMENTUM = {
    **prefixed("module.encoder_q.", ARRAYS),
    **prefixed("module.encoder_k.", ARRAYS, 2),
    "module.queue": np.ones((4, 9), np.float32),
}
DINO = {
    "student": {
        **prefixed("module.backbone.", scale=2),
        **prefixed("module.head.", {}),
    },
    "teacher": prefixed("backbone."),
    "optimizer": {"state": {0: {"exp_avg": np.ones(3, np.float32)}}, "lr": 0.1},
    "epoch": 3,
}
# Name: content, options, number of classes.
LAYOUTS = {
    "lightly": (sequential("backbone.") | EXTRA, {}, None),
    "lightly, own ResNet": (
        {"state_dict": sequential("backbone.", offset=2, shortcut="shortcut")},
        {},
        None,
    ),
    "children without a max-pool": (sequential("module.f.", offset=3), {}, None),
    "shortcuts": (
        {
            "model": {
                f"encoder.{name.replace('downsample', 'shortcut')}": array
                for name, array in BACKBONE.items()
            }
        },
        {},
        None,
    ),
    "solo-learn": (
        {
            "state_dict": prefixed("backbone.")
            | prefixed("projector.", {"0.weight": COUNTER})
        },
        {},
        None,
    ),
    "VISSL": (
        {
            "phase_idx": 3,
            "classy_state_dict": {
                "base_model": {
                    "model": {
                        "trunk": prefixed("_feature_blocks."),
                        "heads": {"0.clf.0.weight": np.ones((3, 16), np.float32)},
                    }
                }
            },
        },
        {},
        None,
    ),
    "DINO's teacher": (DINO, {"key": "teacher"}, None),
    "DINO's teacher by a prefix": (DINO, {"prefix": "backbone."}, None),
    "SparK": ({"arch": "resnet50", "is_pretrain": False, "module": ARRAYS}, {}, 7),
    "MoCo": ({"state_dict": MOMENTUM}, {"prefix": "module.encoder_q."}, 7),
    "MoCo, with the key": (
        {"state_dict": MOMENTUM},
        {"prefix": "state_dict.module.encoder_q."},
        7,
    ),
    "MoCo v3": (
        {"state_dict": prefixed("module.base_encoder.") | prefixed("module.m.", {})},
        {},
        None,
    ),
    "BYOL, numbers": (
        {
            "online_network_state_dict": sequential("encoder."),
            "target_network_state_dict": sequential("encoder."),
        },
        {"key": "online_network_state_dict"},
        None,
    ),
    "BYOL": (
        prefixed("online_encoder.net.") | prefixed("target_encoder.net.", scale=3),
        {"prefix": "online_encoder.net."},
        None,
    ),
    "SwAV": (prefixed("module.") | prefixed("module.", EXTRA), {}, None),
    "Barlow Twins": ({"epoch": 1, "model": prefixed("module.backbone.")}, {}, None),
    "OpenSelfSup": ({"meta": {}, "state_dict": prefixed("backbone.")}, {}, None),
    "MMSelfSup's MoCo": (
        prefixed("encoder_q.0.") | prefixed("encoder_k.0.", scale=2),
        {"prefix": "encoder_q.0."},
        None,
    ),
    "DataParallel": (prefixed("module.", ARRAYS), {}, 7),
    "Hugging Face": (hugging_face("resnet.") | CLASSIFIER, {}, 7),
    "Hugging Face, no classifier": (hugging_face(), {}, None),
}


def assert_same(weights, num_classes=None):
    want = from_torchvision(ARRAYS)
    jax.tree.map(np.testing.assert_array_equal, weights.variables, want.variables)
    assert weights.num_classes == num_classes
    assert weights.encoder_settings == want.encoder_settings
    if num_classes:
        got, want = weights.params["probe"], want.params["probe"]
        jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, tmp_path):
    content, options, num_classes = LAYOUTS[name]
    path = torch_writer.save(content, tmp_path / "x.ckpt")
    assert_same(convert.read(path, normalization="imagenet", **options), num_classes)


def test_several_networks_need_a_choice(tmp_path):
    path = torch_writer.save(DINO, tmp_path / "x.pth")
    number = len(BACKBONE)
    with pytest.raises(DataError) as caught:
        convert.read(path, normalization="none")
    assert str(caught.value) == (
        f"file {path}: holds several ResNets, and --key or --prefix must choose one: "
        f"--key=student --prefix=module.backbone. ({number} tensors); "
        f"--key=teacher --prefix=backbone. ({number} tensors)"
    )
    with pytest.raises(
        DataError, match=r"^--key=model: file .* has no such ResNet; it"
    ):
        convert.read(path, normalization="none", key="model")


def test_a_file_that_does_not_fit_lists_what_it_holds(tmp_path):
    content = {
        "epoch": 3,
        "net": {
            f"blocks.{i}.kernel.weight": BACKBONE["conv1.weight"] for i in range(4)
        },
        "state_dict_ema": {"head.weight": COUNTER},
    }
    path = torch_writer.save(content, tmp_path / "x.pth")
    with pytest.raises(DataError) as caught:
        convert.read(path, normalization="none")
    line = str(caught.value)
    assert "its keys are epoch, net, state_dict_ema" in line
    assert "4 below net.blocks, first convolution 2x3x7x7" in line
    assert "1 below state_dict_ema.head" in line


def test_an_unfitting_tensor_has_its_own_name(tmp_path):
    content = sequential("backbone.")
    content["backbone.5.0.conv1.weight"] = np.zeros((3, 2, 3, 3), np.float32)
    path = torch_writer.save(content, tmp_path / "x.pth")
    needle = (
        r"a ResNet in nn.Sequential .*: backbone\.5\.0\.conv1\.weight "
        r"\(group2/block1/conv1/kernel\) has shape 3x3x2x3 and must have 3x3x2x4"
    )
    with pytest.raises(DataError, match=needle):
        convert.read(path, normalization="none")


# Folders ------------------------------------------------------------------------------

PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",
    "crop_pct": 0.875,
    "size": {"shortest_edge": 192},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
BIT = {
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 192, "width": 192},
    "do_normalize": False,
}
TIMM = {
    "architecture": "resnet10.simclr",
    "pretrained_cfg": {
        "input_size": [3, 160, 160],
        "crop_pct": 0.95,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    },
}


def library_folder(folder, arrays, config, processor=None):
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


@pytest.mark.parametrize(
    ("arrays", "config", "processor", "want"),
    [
        (hugging_face("resnet."), {"model_type": "resnet"}, PROCESSOR, (192, 0.875)),
        (hugging_face(), {"model_type": "resnet"}, BIT, (192, 0.75)),
        (ARRAYS, TIMM, None, (160, 0.95)),
    ],
)
def test_folders_bring_their_preprocessing(arrays, config, processor, want, tmp_path):
    path = library_folder(tmp_path, arrays, config, processor)
    weights = convert.read(path)
    normalization = "imagenet" if processor is PROCESSOR else "none"
    assert weights.encoder_settings["normalization"] == normalization
    assert (weights.image_size, weights.crop_proportion) == want
    # The file alone stands for the folder, and no flag may contradict it.
    other = "imagenet" if normalization == "none" else "none"
    with pytest.raises(ConfigError, match=f"--normalization={other}: must be left out"):
        convert.read(f"{path}/model.safetensors", normalization=other)


@pytest.mark.parametrize(
    ("config", "needle"),
    [
        ({"model_type": "vit"}, "model_type is 'vit'"),
        (
            {"model_type": "resnet", "downsample_in_bottleneck": True},
            "downsample_in_bottleneck is True: must be False",
        ),
        (
            {"architecture": "resnet50d.ra2_in1k"},
            "architecture is 'resnet50d.ra2_in1k'",
        ),
    ],
)
def test_folders_of_other_networks(config, needle, tmp_path):
    path = library_folder(tmp_path, {"a": np.ones(1, np.float32)}, config)
    with pytest.raises(DataError, match=re.escape(needle)):
        convert.read(path)


# SimCLRv2 in PyTorch ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_simclr_v2_in_pytorch_brings_its_head(offset, tmp_path):
    """A ResNet-50 whose names are written out here, one block as an example."""
    structure = Structure(50)
    rng = np.random.default_rng(0)
    encoder = create_encoder(depth=50, width=1 / 16, first_group_projection=True)
    like = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 64, 64, 3)))
    resnet = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        layer, name = place(path)
        array = rng.random(leaf.shape).astype(np.float32)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        leaf_name = {"bias": "bias", "mean": "running_mean", "var": "running_var"}
        end = leaf_name.get(name, "weight")
        resnet[f"{torch_layouts._simclr_v2(layer, structure)}.{end}"] = array
    for part in ("projection.shortcut", "net.2", "projection.bn.0", "net.5.0"):
        assert f"net.2.blocks.0.{part}.weight" in resnet
    width, head = encoder.feature_width, {}
    for i, outputs in enumerate((width, width, 16)):
        head[f"layers.{3 * i}.weight"] = rng.random((outputs, width), np.float32)
        for leaf in ("weight", "running_mean", "running_var"):
            head[f"layers.{3 * i + 1}.{leaf}"] = rng.random(outputs, np.float32)
        head[f"layers.{3 * i + 1}.bias"] = np.full(outputs, offset, np.float32)
    file = torch_writer.save({"resnet": resnet, "head": head}, tmp_path / "x.pth")
    if offset:  # the last one has no place
        with pytest.raises(DataError, match=r"head\.layers\.7\.bias has no place"):
            convert.read(file, normalization="none")
        return
    weights = convert.read(file, normalization="none")
    assert weights.head_settings["num_layers"] == 3
    assert weights.head_settings["output_dim"] == 16
    np.testing.assert_array_equal(
        weights.params["head"]["dense3"]["kernel"], head["layers.6.weight"].T
    )
    np.testing.assert_array_equal(
        weights.params["encoder"]["stem"]["conv1"]["kernel"],
        resnet["net.0.0.weight"].transpose(2, 3, 1, 0),
    )
