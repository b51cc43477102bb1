"""Weights with torchvision's names, against torchvision itself."""

import pathlib

import jax
import numpy as np
import pytest
import reference_weights
from cases import first

from simclr_jax.errors import DataError
from simclr_jax.models import create_encoder
from simclr_jax.weights import from_torchvision, to_torchvision, torch_files

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TORCHVISION = "torchvision 0.29 (PyTorch 2.14), recorded outputs"


def state_dict(depth, *, width=1, classes=None, **settings):
    """Weights by the formula, under torchvision's names."""
    encoder = create_encoder(depth=depth, width=width, **settings)
    like = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    variables = {
        name: reference_weights.fill({"encoder": tree})["encoder"]
        for name, tree in like.items()
    }
    arrays = to_torchvision(variables)
    if classes:
        probe = {"kernel": np.zeros((encoder.feature_width, classes))}
        probe = reference_weights.fill({"probe": {**probe, "bias": np.zeros(classes)}})
        arrays["fc.weight"] = probe["probe"]["kernel"].T
        arrays["fc.bias"] = probe["probe"]["bias"]
    return arrays


@pytest.mark.parametrize("depth", first(1, [18, 50]))
def test_forward_pass_is_torchvision_s(depth, fidelity):
    weights = from_torchvision(state_dict(depth, classes=10), normalization="imagenet")
    assert weights.num_classes == 10
    with np.load(GOLDEN / "resnet_forward_r50_imagenet.npz") as golden:
        images = golden["input"][:4]
    outputs, _ = jax.jit(weights.model.apply, static_argnames="train")(
        weights.params, weights.batch_stats, images, train=False
    )
    with np.load(GOLDEN / "torchvision_forward.npz") as golden:
        for ours, name in (("h", "h"), ("logits", "logits")):
            fidelity(
                f"ResNet-{depth} with torchvision's names, imported: {ours}",
                getattr(outputs, ours),
                golden[f"resnet{depth}/{name}"],
                source=TORCHVISION,
                of_largest=1e-5,
            )


def test_files_of_pytorch():
    """A file of PyTorch with the formula's values: each layer gets its weights."""
    path = str(GOLDEN / "torch_moco.pth")
    weights = from_torchvision(
        torch_files.read_state_dict(path),
        normalization="none",
        prefix="module.encoder_q.",
        file=path,
    )
    settings = weights.encoder_settings
    assert (settings["depth"], settings["width"]) == (18, 1 / 32)
    assert settings["stem"] == "imagenet"
    assert not settings["first_group_projection"]
    assert settings["normalization"] == "none"
    assert weights.num_classes == 31
    for tree in (weights.params, weights.batch_stats):
        want = reference_weights.fill(tree)
        jax.tree.map(np.testing.assert_array_equal, tree, want)
    assert weights.ignored == {
        "batch counters": 20,
        "outside module.encoder_q.": 122,
    }


def test_several_networks_need_a_prefix():
    arrays = torch_files.read_state_dict(str(GOLDEN / "torch_moco.pth"))
    with pytest.raises(
        DataError,
        match=r"choose one: .*--prefix=module\.encoder_q\. .*=module\.encoder_k\. ",
    ):
        from_torchvision(arrays, normalization="none")
    with pytest.raises(DataError, match=r"--prefix=module\.: .* has no such ResNet"):
        from_torchvision(arrays, normalization="none", prefix="module.")


@pytest.mark.parametrize(
    ("depth", "settings"),
    first(
        1,
        [
            (18, {"stem": "cifar"}),
            (50, {"width": 0.5}),
            (34, {"first_group_projection": True}),
            (101, {}),
            (18, {"width": 2}),
        ],
    ),
)
def test_there_and_back(depth, settings):
    width = settings.get("width", 1) / 16
    arrays = state_dict(depth, **{**settings, "width": width})
    weights = from_torchvision(arrays, normalization="imagenet")
    got = weights.encoder_settings
    assert got["depth"] == depth
    assert got["width"] == width
    assert got["stem"] == settings.get("stem", "imagenet")
    assert got["first_group_projection"] == settings.get(
        "first_group_projection", False
    )
    assert got["max_pool_padding"] == "torch"
    back = to_torchvision(weights.variables)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_heads_are_counted_and_not_taken_for_layers():
    arrays = state_dict(18, width=1 / 16)
    arrays["fc.0.weight"] = np.zeros((8, 32), np.float32)
    arrays["projector.weight"] = np.zeros((8, 32), np.float32)
    weights = from_torchvision(arrays, normalization="none")
    assert weights.num_classes is None
    assert weights.ignored == {"other layers": 2}


@pytest.mark.parametrize("fault", ["missing", "shape", "extra", "nan", "names"])
def test_misfits_are_named(fault):
    arrays = state_dict(18, width=1 / 16)
    name = "layer2.0.conv1.weight"
    want = {
        "missing": rf"{name} \(group2/block1/conv1/kernel\) is missing",
        "shape": rf"{name} \(.*\) has shape 3x3x4x9 and must have 3x3x4x8",
        "extra": r"layer2\.7\.conv1\.weight has no place",
        "nan": rf"{name} has values that are not finite",
        "names": r"holds no ResNet .* keys are a0, a1, .* 100 below \(no key\), first",
    }[fault]
    if fault == "missing":
        del arrays[name]
    elif fault == "shape":
        arrays[name] = np.zeros((9, 4, 3, 3), np.float32)
    elif fault == "extra":
        arrays["layer2.7.conv1.weight"] = arrays[name]
    elif fault == "nan":
        arrays[name][0, 0, 0, 0] = np.nan
    else:
        arrays = {f"a{i}": a for i, a in enumerate(arrays.values())}
    with pytest.raises(DataError, match=want):
        from_torchvision(arrays, normalization="none")


@pytest.mark.parametrize(
    "setting", first(1, [{"sk_ratio": 0.0625}, {"se_ratio": 0.25}])
)
def test_networks_that_torchvision_has_no_names_for(setting):
    encoder = create_encoder(depth=50, width=1 / 16, **setting)
    like = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="without selective kernels"):
        to_torchvision(jax.tree.map(lambda x: np.zeros(x.shape), like))


@pytest.mark.parametrize(
    "extra", ["conv2.weight", "bn2.weight", "layer5.0.conv1.weight"]
)
def test_further_layers_of_the_network_itself_are_refused(extra):
    arrays = {**state_dict(18, width=1 / 16), extra: np.zeros((4,), np.float32)}
    with pytest.raises(DataError, match=f"{extra} has no place"):
        from_torchvision(arrays)


def test_what_names_do_not_tell_is_noted():
    plain = from_torchvision(state_dict(18, width=1 / 16))
    assert [("antialiasing" in note) for note in plain.notes] == [True]
    noted = from_torchvision(state_dict(18, width=1 / 16, stem="cifar", classes=3))
    assert any("3x3 stem" in note for note in noted.notes)
    assert any("linear classifier on h" in note for note in noted.notes)
