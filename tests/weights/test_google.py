"""Google's checkpoints: their names, and the outputs of the imported weights."""

import pathlib
import re

import google_files
import jax
import numpy as np
import pytest
from cases import first

from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError
from simclr_jax.weights import google, load_google_checkpoint, tensor_bundles
from simclr_jax.weights.named_tensors import Tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FORMATS = {
    "TF1 checkpoint": ("tf1", dict),
    "TF2 checkpoint": ("tf2", google_files.as_checkpoint),
    "TF2 SavedModel": ("tf2", google_files.as_saved_model),
}
# (architecture in the recorded names, recorded forward pass, encoder's settings)
NETWORKS = {
    "ResNet-18 CIFAR": ("r18_cifar_l3", "r18_cifar", (18, 0.0, "cifar")),
    "ResNet-50": ("r50_1x_l3", "r50_imagenet", (50, 0.0, "imagenet")),
    "ResNet-50 SK": ("r50_1x_sk1_l3", "r50_sk", (50, 0.0625, "imagenet")),
}
# Each network and each format once.
QUICK = {
    ("ResNet-18 CIFAR", "TF1 checkpoint"),
    ("ResNet-18 CIFAR", "TF2 SavedModel"),
}


def small(layout="TF1 checkpoint", config="r18_cifar_l3_pretrain"):
    """Arrays of a narrow ResNet-18 in one of the formats."""
    tf_format, form = FORMATS[layout]
    return form(google_files.tensors(config, tf_format, divisor=8))


def leaves(weights):
    return jax.tree.leaves([weights.params, weights.batch_stats])


def apply(weights, images):
    outputs, _ = jax.jit(weights.model.apply, static_argnames="train")(
        weights.params, weights.batch_stats, images, train=False
    )
    return outputs


@pytest.mark.parametrize("key", google_files.rows(), ids="-".join)
def test_names_are_the_recorded_ones(key):
    rows = google_files.rows()[key]
    tensors = Tensors("file", {row["name"]: row["shape"] for row in rows}, None)
    if key[1] == "tf1":
        layout = google.counter_layout(tensors, ema=False, resize="bicubic")
    else:
        paths = {name.removesuffix(google_files.VALUE): name for name in tensors.shapes}
        graph = tensor_bundles.parse_graph(google_files.object_graph(paths))
        layout = google.object_layout(tensors, graph, resize=None)
    theirs = {"scale": "gamma", "bias": "beta", "mean": "moving_mean"}
    theirs |= {"var": "moving_variance", "kernel": "kernel"}
    got = {
        f"{prefix}{layer}/{theirs[leaf]}": name
        for prefix, part in (("", layout.encoder), ("proj_head/", layout.head))
        for (layer, leaf), name in part.items()
    }
    got |= {f"linear_head/{leaf}": name for leaf, name in layout.probe.items()}
    want = {
        row["canonical_name"]: row["name"]
        for row in rows
        if row["kind"] in ("encoder", "projection", "linear_head")
    }
    if "linear_head/bias" not in want:
        got = {ours: name for ours, name in got.items() if name in tensors.shapes}
    assert got == want
    for row in rows:
        if row["kind"] in ("bookkeeping", "optimizer"):
            assert layout.ignorable(row["name"]) is not None
        else:
            assert layout.ignorable(row["name"]) is None


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        (network, layout)
        if (network, layout) in QUICK
        else pytest.param(network, layout, marks=pytest.mark.slow)
        for network in NETWORKS
        for layout in FORMATS
    ],
)
def test_forward_pass_is_the_recorded_one(network, layout, tmp_path, fidelity):
    names, recording, (depth, sk_ratio, stem) = NETWORKS[network]
    tf_format, form = FORMATS[layout]
    # The recorded classifier has ten classes; in TF1 only finetuned files have one.
    kind = "finetune" if layout == "TF1 checkpoint" else "pretrain"
    arrays = google_files.tensors(f"{names}_{kind}", tf_format, classes=10)
    weights = load_google_checkpoint(
        google_files.write(tmp_path / "model.ckpt-1234", form(arrays))
    )
    assert weights.layout == layout
    assert weights.encoder_settings == {
        "depth": depth,
        "width": 1.0,
        "sk_ratio": sk_ratio,
        "se_ratio": 0.0,
        "batch_norm_epsilon": 1e-5,
        "stem": stem,
        "first_group_projection": True,
        "max_pool_padding": "same",
        "normalization": "none",
    }
    assert weights.head_settings["num_layers"] == 3
    era = "TF2" if layout == "TF2 checkpoint" else "TF1"
    assert weights.resize == {"TF1": "bicubic_legacy", "TF2": "bicubic"}[era]
    assert weights.num_classes == 10
    if network == "ResNet-18 CIFAR":
        saved_model = layout == "TF2 SavedModel"
        assert weights.step == (0 if saved_model else google_files.STEP)
    with np.load(GOLDEN / f"resnet_forward_{recording}.npz") as golden:
        outputs = apply(weights, golden["input"])
        for ours, name in (("h", "h"), ("z", "z"), ("logits", "logits_sup")):
            fidelity(
                f"{layout} of {network}, imported: {ours}",
                getattr(outputs, ours),
                golden[f"eval/{name}"],
                of_largest=1e-5,
            )


@pytest.mark.parametrize("layout", first(1, ["TF2 checkpoint", "TF2 SavedModel"]))
def test_files_that_tensorflow_writes(layout, tmp_path):
    """With object graphs and keys that TensorFlow writes, not these tests."""
    arrays = google_files.tensors("r18_cifar_l3_pretrain", "tf2", divisor=8)
    objects = google_files.as_objects(arrays)
    path = str(tmp_path / "written")
    if layout == "TF2 checkpoint":
        path = tf.train.Checkpoint(model=objects.model).write(path)
    else:
        tf.saved_model.save(objects, path)
    weights = load_google_checkpoint(path)
    assert weights.layout == layout
    want = load_google_checkpoint(
        google_files.write(tmp_path / "ckpt-1", google_files.as_checkpoint(arrays))
    )
    jax.tree.map(np.testing.assert_array_equal, leaves(weights), leaves(want))
    assert weights.num_classes == 10


@pytest.mark.parametrize("layout", FORMATS)
def test_notes_and_counts(layout, tmp_path):
    weights = load_google_checkpoint(google_files.write(tmp_path / "c", small(layout)))
    assert weights.encoder_settings["width"] == 0.125
    assert weights.unexpected == ()
    assert (
        weights.ignored
        == {
            "TF1 checkpoint": {"optimizer slots": 71, "bookkeeping": 1},
            "TF2 checkpoint": {"optimizer slots": 73, "bookkeeping": 3},
            "TF2 SavedModel": {"bookkeeping": 1},
        }[layout]
    )
    assert bool(weights.notes) == (layout == "TF2 SavedModel")


def test_fine_tuned_files_come_with_a_warning(tmp_path):
    arrays = small(config="r18_cifar_l3_finetune")
    weights = load_google_checkpoint(google_files.write(tmp_path / "c", arrays))
    assert weights.num_classes == weights.params["probe"]["bias"].shape[0]
    (note,) = weights.notes
    assert "projection head is untrained" in note
    assert "may be the head's first layer" in note


def test_averages_are_taken_on_request_only(tmp_path):
    arrays = small()
    averages = {
        f"ema_model/{name}": array + 1
        for name, array in arrays.items()
        if name.startswith(("base_model", "head")) and "Momentum" not in name
    }
    path = google_files.write(tmp_path / "c", {**arrays, **averages})
    plain = load_google_checkpoint(path)
    assert plain.ignored["moving averages"] == len(averages)
    ema = load_google_checkpoint(path, ema=True)
    assert ema.ignored["weights that are not averaged"] == len(averages)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a + 1, b),
        leaves(plain),
        leaves(ema),
    )


def test_the_released_v1_files_have_no_projection_head(tmp_path):
    arrays = small()
    for name in [name for name in arrays if name.startswith("head_contrastive")]:
        del arrays[name]
    weights = load_google_checkpoint(google_files.write(tmp_path / "c", arrays))
    assert weights.head_settings == {"kind": "none"}
    assert set(weights.params) == {"encoder"}


def test_linear_heads_and_memory_buffers(tmp_path):
    arrays = {
        name.replace("head_contrastive/nl_2/", "head_contrastive/l_0/"): array
        for name, array in small().items()
        if not name.startswith(("head_contrastive/nl_0", "head_contrastive/nl_1"))
    }
    arrays["memory/queue"] = np.ones((4, 16), np.float32)
    weights = load_google_checkpoint(google_files.write(tmp_path / "c", arrays))
    assert weights.head_settings == {
        "kind": "linear",
        "num_layers": 1,
        "hidden_dim": None,
        "output_dim": 16,
    }
    assert weights.ignored["memory buffer"] == 1


def test_counters_may_start_anywhere(tmp_path):
    """They count what a process has built, and this may not be its first network."""

    def shift(name):
        return re.sub(
            r"^(base_model/(?:conv2d|batch_normalization))(?:_(\d+))?/",
            lambda m: f"{m[1]}_{int(m[2] or 0) + 40}/",
            name,
        )

    want = load_google_checkpoint(google_files.write(tmp_path / "c", small()))
    shifted = {shift(name): array for name, array in small().items()}
    got = load_google_checkpoint(google_files.write(tmp_path / "d", shifted))
    jax.tree.map(np.testing.assert_array_equal, leaves(got), leaves(want))


def test_folders_name_their_checkpoint(tmp_path):
    first = google_files.write(tmp_path / "run" / "model.ckpt-1", small())
    folder = str(tmp_path / "run")
    for path in (folder, folder + "/", first, first + ".index"):
        assert load_google_checkpoint(path).step == google_files.STEP
    google_files.write(tmp_path / "run" / "model.ckpt-2", small())
    with pytest.raises(DataError, match=r"model\.ckpt-1\.index, model\.ckpt-2\.index"):
        load_google_checkpoint(folder)
    (tmp_path / "run" / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-2"\n'
    )
    assert load_google_checkpoint(folder).step == google_files.STEP


# Faults.


# A tensor in the middle and the first one, by format.
DAMAGED = {
    "TF1 checkpoint": ("base_model/conv2d_8/kernel", "base_model/conv2d/kernel"),
    "TF2 checkpoint": (
        "model/resnet_model/block_groups/1/layers/0/conv2d_bn_layers/2/conv2d/kernel",
        "model/resnet_model/initial_conv_relu_max_pool/0/conv2d/kernel",
    ),
}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("layout", DAMAGED)
def test_a_missing_tensor_is_named(layout, position, tmp_path):
    name = DAMAGED[layout][position]
    arrays = small(layout)
    arrays = {n: a for n, a in arrays.items() if not n.startswith(name)}
    if layout == "TF2 checkpoint":
        del arrays[google_files.GRAPH]
        arrays = google_files.as_checkpoint(arrays)
    ours = ("group2/block1/conv2/kernel", "stem/conv1/kernel")[position]
    with pytest.raises(DataError) as error:
        load_google_checkpoint(google_files.write(tmp_path / "c", arrays))
    assert f"{name} ({ours}) is missing" in str(error.value)
    assert "and 1 more" not in str(error.value)


@pytest.mark.parametrize("part", ["base_model/conv2d_7/kernel", "base_model/batch_norm"
    "alization/gamma", "base_model/batch_normalization_20/gamma",
    "head_contrastive/nl_1/dense/kernel"])  # fmt: skip
def test_a_wrong_shape_is_named(part, tmp_path):
    arrays = small()
    shape = arrays[part].shape
    arrays[part] = np.zeros((*shape[:-1], shape[-1] + 1), np.float32)
    with pytest.raises(DataError) as error:
        load_google_checkpoint(google_files.write(tmp_path / "c", arrays))
    by = "x".join(map(str, shape))
    assert re.search(
        rf"{part} \(\S+\) has shape \S+ and must have {by}", str(error.value)
    )
    assert str(error.value).count("has shape") == 1


@pytest.mark.parametrize("name", ["base_model/conv2d_21/kernel", "ema", "model/extra"])
def test_an_extra_tensor_is_named_and_can_be_ignored(name, tmp_path):
    arrays = {**small(), name: np.zeros((1, 1, 4, 4), np.float32)}
    path = google_files.write(tmp_path / "c", arrays)
    with pytest.raises(DataError, match=f"{name} has no place"):
        load_google_checkpoint(path)
    weights = load_google_checkpoint(path, ignore_unexpected=True)
    assert weights.unexpected == (name,)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files(layout, suffix, share, tmp_path):
    prefix = google_files.write(tmp_path / "c", small(layout))
    file = pathlib.Path(prefix + suffix)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=f"file {prefix}: cannot be read"):
        load_google_checkpoint(prefix)


def test_a_flipped_bit_is_noticed(tmp_path):
    arrays = {name: a for name, a in small().items() if "Momentum" not in name}
    prefix = google_files.write(tmp_path / "c", arrays)
    file = pathlib.Path(prefix + ".data-00000-of-00001")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_google_checkpoint(prefix)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        load_google_checkpoint(str(tmp_path / "nowhere"))
    prefix = google_files.write(tmp_path / "c", small())
    pathlib.Path(prefix + ".data-00000-of-00001").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load_google_checkpoint(prefix)


def test_values_that_are_not_finite(tmp_path):
    arrays = small()
    arrays["base_model/conv2d_3/kernel"].flat[5] = np.nan
    path = google_files.write(tmp_path / "c", arrays)
    with pytest.raises(DataError, match="conv2d_3/kernel has values that are not fin"):
        load_google_checkpoint(path)


def test_checkpoints_of_other_projects(tmp_path):
    path = google_files.write(tmp_path / "c", {"dense/kernel": np.ones((2, 2), "f4")})
    with pytest.raises(DataError, match=r"its first ones are dense/kernel"):
        load_google_checkpoint(path)
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    path = tf.train.Checkpoint(model=module).write(str(tmp_path / "d"))
    with pytest.raises(DataError, match="object graph has no model/resnet_model"):
        load_google_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("global_step", np.int64(-5), "must be a number of steps"),
        ("global_step", np.array([1, 2]), "must be a number of steps"),
        (
            "head_supervised/linear_layer/dense/bias",
            np.float32(1),
            r"shape \(\) and must",
        ),
        (
            "base_model/batch_normalization/gamma",
            np.array(["a"] * 8),
            "does not hold numbers",
        ),
        (
            "base_model/batch_normalization_3/moving_variance",
            np.full(8, -1, np.float32),
            "has negative variances",
        ),
        (
            "head_contrastive/nl_999999/dense/kernel",
            np.zeros((1, 1), np.float32),
            "is missing",
        ),
    ],
)
def test_odd_tensors_are_refused(name, value, message, tmp_path):
    arrays = {**small(config="r18_cifar_l3_finetune"), name: value}
    with pytest.raises(DataError, match=message):
        load_google_checkpoint(google_files.write(tmp_path / "c", arrays))
