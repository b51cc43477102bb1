"""Exports of fine-tuned and distilled runs: classifier, class names, model card."""

import functools
import json

import export_runs
import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import simclr_jax
from simclr_jax.data.sources import photographs
from simclr_jax.data.sources.listings import Listing
from simclr_jax.errors import ConfigError, DataError, ExportFailed
from simclr_jax.models.resnet import feature_maps, strides
from simclr_jax.runs import dataset_record
from simclr_jax.weights import (
    classifiers,
    descriptions,
    encoder,
    export,
    formats,
    model_card,
    parity,
    torch_peers,
)
from simclr_jax.weights.parity import Parity

HOSTILE = (
    'say "hi": {a}',
    "two\nlines | `code`",
    "\U0001f98a \u72d0",
    "x" * 300,
    "<script>alert(1)</script>",
    "yes",
)


@pytest.fixture(autouse=True)
def no_peers(monkeypatch):
    monkeypatch.setattr(torch_peers, "missing", lambda library: library)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run that was fine-tuned on h."""
    return export_runs.write(tmp_path_factory.mktemp("tuned") / "run", classes=HOSTILE)


@pytest.fixture(scope="module")
def middle(tmp_path_factory):
    """A run that was fine-tuned from the first layer of the head."""
    folder = tmp_path_factory.mktemp("middle") / "run"
    return export_runs.write(folder, classes=("a", "b", "a"), kept_layers=1)


@functools.cache
def opened_once(run):
    return simclr_jax.load(run)


def kept(run, name, wanted=None):
    return classifiers.for_export(opened_once(run), wanted, name=name)


def written(folder, original, name):
    """As the command writes it, without a comparison; opened again."""
    folder.mkdir()
    format_ = formats.FORMATS[name]
    lines = format_.write(folder, original)
    descriptions.write(folder, original, name=name, normalizes=format_.normalizes)
    return lines


def test_classes_travel_with_any_names(tuned, tmp_path):
    original = kept(tuned, "huggingface")
    assert classifiers.names(original) == list(HOSTILE)
    weight, bias = classifiers.linear(original)
    assert weight.shape == (6, 32)

    written(tmp_path / "hf", original, "huggingface")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["ResNetForImageClassification"]
    assert [config["id2label"][str(i)] for i in range(6)] == list(HOSTILE)
    assert [config["label2id"][name] for name in HOSTILE] == list(range(6))
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    np.testing.assert_array_equal(tensors["classifier.1.weight"], weight)
    np.testing.assert_array_equal(tensors["classifier.1.bias"], bias)
    assert "resnet.embedder.embedder.convolution.weight" in tensors

    written(tmp_path / "timm", original, "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 6
    assert config["pretrained_cfg"]["label_names"] == list(HOSTILE)
    tensors = load_file(tmp_path / "timm" / "model.safetensors")
    np.testing.assert_array_equal(tensors["fc.weight"], weight)
    np.testing.assert_array_equal(tensors["fc.bias"], bias)

    lines = written(tmp_path / "tv", original, "torchvision")
    assert "models.resnet18(num_classes=6)" in lines
    assert json.loads((tmp_path / "tv" / "class_names.json").read_text()) == [*HOSTILE]

    written(tmp_path / "own", original, "safetensors")
    with safe_open(tmp_path / "own" / "encoder.safetensors", "np") as file:
        assert json.loads(file.metadata()["class_names"]) == list(HOSTILE)
    for name in ("hf", "timm", "tv", "own"):
        opened = simclr_jax.load(str(tmp_path / name))
        assert opened.class_names == HOSTILE
        jax.tree.map(
            np.testing.assert_array_equal, opened.variables, original.variables
        )
        probe, want = (x.heads["params"]["probe"] for x in (opened, original))
        jax.tree.map(np.testing.assert_array_equal, probe, want)


def numpy_classifier(pretrained, h):
    """Through the layer of the head below the classifier, in float64."""
    params = pretrained.heads["params"]
    stats, bn = (x["head"]["bn1"] for x in (pretrained.heads["batch_stats"], params))
    x = h.astype(np.float64) @ np.asarray(params["head"]["dense1"]["kernel"])
    x = (x - stats["mean"]) / np.sqrt(np.asarray(stats["var"]) + 1e-5) * bn["scale"]
    x = np.maximum(x + bn["bias"], 0)
    return x @ np.asarray(params["probe"]["kernel"]) + params["probe"]["bias"]


@pytest.mark.slow
def test_a_middle_layer_travels_with_its_classifier(middle, tmp_path):
    written(tmp_path / "out", kept(middle, "safetensors"), "safetensors")
    opened = simclr_jax.load(str(tmp_path / "out"))
    assert opened.class_names == ("a", "b", "a"), "two classes may share a name"
    h = np.random.default_rng(3).normal(size=(4, 32)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        got = opened.classifier_of_h()(h)
    want = numpy_classifier(opened_once(middle), h)
    assert want.std() > 0.01
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["safetensors", "stablehlo"])
def test_an_export_classifies_as_its_run(name, middle, tmp_path):
    result = export.export(middle, name, str(tmp_path / "out"))
    assert [c["output"] for c in result.comparisons] == ["features", "logits"]
    images = photographs.load_whole()[:2]
    run, opened = opened_once(middle), simclr_jax.load(str(tmp_path / "out"))
    got = opened.classify(images)
    np.testing.assert_allclose(got, run.classify(images), rtol=1e-5, atol=1e-5)
    want = numpy_classifier(run, run.encode(images))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(opened.encode(images), run.encode(images), atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "logits in " in card
    assert "fine-tuned with labels" in card.splitlines()[0]
    assert "nt_xent" not in card
    assert "cross entropy of the labels, of 10 % of each class's images" in card
    assert "a new classifier on layer 1 of the projection head" in card
    assert "- 2: a" in card


@pytest.mark.parametrize("name", ["torchvision", "timm", "huggingface"])
def test_a_middle_layer_is_refused_where_it_has_no_place(name, middle):
    with pytest.raises(ConfigError, match=r"layer 1 of the projection head.*stablehlo"):
        kept(middle, name)
    assert kept(middle, name, False).model.num_classes is None


@pytest.mark.slow
def test_the_flag(tuned, tmp_path):
    without = kept(tuned, "timm", False)
    assert (without.heads, classifiers.names(without)) == ({}, [])
    assert classifiers.describe(without) is None
    plain = export_runs.write(tmp_path / "plain")
    assert kept(plain, "timm").model.num_classes is None
    with pytest.raises(ConfigError, match="--classifier: the run has no classifier"):
        kept(plain, "timm", True)
    with pytest.raises(ConfigError, match="--pyramid: must be left out with"):
        export.export(plain, "timm", str(tmp_path / "out"), pyramid=True)


@pytest.mark.slow
def test_classes_without_names_are_numbered(tmp_path):
    run = export_runs.write(tmp_path / "run", classes=("x", "y"), named=False)
    original = kept(run, "timm")
    assert classifiers.names(original) == ["class_0", "class_1"]
    assert "recorded no names" in model_card._classes(original)
    # A record of another number of classes must not name them.
    listing = Listing(1, 3, ["p", "q", "r"], "file", {})
    dataset_record.write(run, listing)
    assert simclr_jax.load(run).class_names is None


def test_a_student_has_the_classes_of_its_teacher(tmp_path):
    unlabelled = Listing(9, None, None, "file", {})
    dataset_record.write(str(tmp_path), unlabelled, ("caf\u00e9", "\U0001f98a"))
    assert dataset_record.class_names(str(tmp_path)) == ["caf\u00e9", "\U0001f98a"]
    assert dataset_record.read(str(tmp_path)) == unlabelled
    assert dataset_record.class_names(str(tmp_path / "none")) is None


def test_model_cards_say_what_was_minimised():
    distill = {
        "teacher": "runs/tuned",
        "temperature": 2.0,
        "labelled_weight": 0.25,
        "label_fraction": 0.1,
        "init_from": None,
    }
    text = "\n".join(model_card._objective({"distill": distill}))
    assert "that the teacher predicts, at temperature 2, and with weight 0.25" in text
    assert "of 10 % of each class's images" in text
    assert "teacher: runs/tuned\nstarted from random weights" in text
    distill["labelled_weight"] = 0.0
    assert "without labels" in model_card._objective({"distill": distill})[0]
    tuning = {"init_from": "a*b", "label_fraction": 1, "layer": -1, "after_group": 2}
    text = "\n".join(model_card._objective({"finetune": tuning}))
    assert r"weights of a\*b, with a new classifier on z; groups up to 2" in text
    loss = {"name": "nt_xent", "temperature": 0.5}
    assert model_card._objective({"loss": loss}) == [
        "objective: nt_xent, temperature 0.5"
    ]


def test_a_model_card_shows_classes_and_the_figures_of_the_export(tuned, tmp_path):
    run = simclr_jax.load(tuned)
    receipt = {
        "protocol": "classifier",
        "metric": "top-1 accuracy",
        "value": 0.5,
        "dataset": "photographs",
        "test_split": "test",
        "num_test": 4,
        "encoder_checksum_after": encoder.checksum(run.variables),
    }
    workdir = tmp_path / "run"
    (workdir / "eval").mkdir(parents=True)
    (workdir / "eval" / "classifier.json").write_text(json.dumps(receipt))

    def card(wanted):
        original = kept(tuned, "safetensors", wanted)
        return model_card.text(
            formats.FORMATS["safetensors"],
            original,
            Parity("none", 1.0, (), None),
            lines="",
            workdir=simclr_jax.paths.as_path(workdir),
        )

    assert "| classifier | top-1 accuracy | 50.0 % |" in card(None)
    assert "| classifier |" not in card(False)
    assert "## Classes" not in card(False)
    text = card(None)
    assert "<script>" not in text
    assert "- 1: two\\\\nlines \\| \\`code\\`" in text
    assert "x" * 80 + "..." in text
    assert "x" * 81 not in text


def test_other_logits_and_lost_tensors_are_found(tuned, tmp_path):
    with pytest.raises(ExportFailed, match="other logits in timm 1"):
        parity.compare(np.ones((1, 2)), np.zeros((1, 2)), "timm 1", "logits")
    original = kept(tuned, "timm")
    written(tmp_path / "own", original, "safetensors")
    file = tmp_path / "own" / "encoder.json"
    content = json.loads(file.read_text())
    for change, message in (
        ({"num_classes": 5}, "must be a list of 5 names"),
        ({"num_classes": 7, "class_names": ["a"] * 7}, "probe/bias has shape"),
    ):
        changed = {**content, "classifier": {**content["classifier"], **change}}
        file.write_text(json.dumps(changed))
        with pytest.raises(DataError, match=message):
            simclr_jax.load(str(tmp_path / "own"))
    without = kept(tuned, "safetensors", False)
    formats.FORMATS["safetensors"].write(tmp_path / "own", without)
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="heads/params/probe/bias is missing"):
        simclr_jax.load(str(tmp_path / "own"))


@pytest.mark.parametrize(
    ("stem", "want"), [("imagenet", (4, 8, 16, 32)), ("cifar", (1, 2, 4, 8))]
)
def test_feature_maps_have_their_strides(stem, want):
    module = simclr_jax.models.create_encoder(depth=10, width=1 / 16, stem=stem)
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), np.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    maps = jax.eval_shape(lambda v, x: feature_maps(module, v, x), variables, images)
    assert strides(module) == want
    assert [m.shape for m in maps] == [
        (2, 64 // s, 96 // s, 4 * 2**i) for i, s in enumerate(want)
    ]
