"""Exported folders: their files, loading them again, and refused encoders."""

import ast
import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import commands
import export_runs
import jax
import numpy as np
import pytest
from cases import first
from export_runs import STEP
from jax import export as jax_export
from ml_collections import config_dict
from PIL import Image
from safetensors.numpy import load_file

import simclr_jax
from simclr_jax.configs import smoke
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import photographs
from simclr_jax.errors import (
    CheckpointNotFound,
    ConfigError,
    DataError,
    ExportFailed,
    InvalidInput,
)
from simclr_jax.models import DEPTHS, create_encoder
from simclr_jax.runs import checkpoints, directory
from simclr_jax.training import build
from simclr_jax.weights import (
    convert,
    encoder,
    export,
    formats,
    parity,
    torch_peers,
)
from simclr_jax.weights.huggingface import to_torchvision_names

# The formats that can express a narrow encoder with the ImageNet stem.
NARROW = ("huggingface", "safetensors", "stablehlo")


@pytest.fixture(autouse=True)
def no_peers(monkeypatch):
    """Makes the tests independent of the libraries that are installed."""
    monkeypatch.setattr(torch_peers, "missing", lambda library: library)


@pytest.fixture(scope="module")
def images():
    return photographs.load_whole()[:16]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run whose preprocessing crops."""
    return export_runs.write(
        tmp_path_factory.mktemp("tiny") / "run", crop_proportion=0.875, steps=(3, STEP)
    )


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """The run in every format that can express it."""
    root = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_peers, "missing", lambda library: library)
        for name in NARROW:
            export.export(tiny, name, str(root / name))
    return root


@pytest.mark.parametrize("name", first(2, ["safetensors", "stablehlo", "huggingface"]))
def test_exports_open_with_the_features_of_the_run(name, tiny, exported, images):
    run, opened = simclr_jax.load(tiny), simclr_jax.load(str(exported / name))
    want, got = run.encode(images), opened.encode(images)
    assert want.std() > 0.01
    if name == "stablehlo":
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(got, want)
        assert opened.encoder.depth == 18
        jax.tree.map(np.testing.assert_array_equal, opened.variables, run.variables)
    assert opened.preprocessing == Preprocessing(32, 0.875, "bicubic")
    assert opened.config == run.config
    assert (opened.step, opened.config_hash) == (STEP, run.config_hash)


@pytest.mark.parametrize("name", first(1, ["safetensors", "stablehlo"]))
def test_lines_of_the_model_card(name, tiny, exported, images, monkeypatch):
    """They run as printed; the lines for PyTorch's libraries run in the slow tests."""
    run = simclr_jax.load(tiny)
    given = images if name == "safetensors" else run.preprocessing(images)
    (_, _, rest) = (exported / name / "README.md").read_text().partition("```python\n")
    lines = rest.partition("```")[0]
    monkeypatch.chdir(exported)
    names = {"images": given}
    exec(lines, names)
    want = run.encode(images)
    np.testing.assert_allclose(np.asarray(names["h"]), want, rtol=0, atol=1e-6)
    if name != "stablehlo":
        got, variables = names["variables"], run.variables
        jax.tree.map(np.testing.assert_array_equal, got, variables)
        assert names["module"].feature_width == 32


def test_huggingface_s_own_files(exported):
    """As `ResNetConfig` and `BitImageProcessor` read them."""
    folder = exported / "huggingface"
    config = json.loads((folder / "config.json").read_text())
    assert config["layer_type"] == "basic"
    assert config["embedding_size"] == 4
    assert config["hidden_sizes"] == [4, 8, 16, 32]
    assert config["depths"] == [2, 2, 2, 2]
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 36}, "32 / 0.875"
    assert processor["crop_size"] == {"height": 32, "width": 32}
    assert processor["rescale_factor"] == 1 / 255
    assert processor["do_normalize"] is False


def test_an_export_decides_over_preprocessing(exported):
    weights, config = convert.read_export(exported / "huggingface", smoke.get_config())
    assert weights.step == STEP
    assert config.image_size == 32
    assert config.evaluation.crop_proportion == 0.875
    assert config.encoder.depth == 18
    assert config.encoder.width == 1 / 16


@pytest.mark.parametrize("name", NARROW)
def test_every_folder_says_what_it_holds(name, exported):
    folder = exported / name
    report = json.loads((folder / "parity.json").read_text())
    by = "jax.export" if name == "stablehlo" else "simclr_jax.load"
    assert [c["library"] for c in report["comparisons"]] == [by]
    assert report["comparisons"][0]["relative"] < 1e-5
    assert report["scale"] > 0.01
    assert report["images"] == "16 images of photographs, split test"
    preprocessing = json.loads((folder / "preprocessing.json").read_text())
    assert preprocessing["image_size"] == 32
    assert preprocessing["input_range"] == [0, 1]
    assert preprocessing["normalization"] is None
    card = (folder / "README.md").read_text()
    assert card.startswith("# ResNet-18 0.0625x, pretrained with SimCLR")
    assert f'simclr_jax.load("{name}")' in card
    assert "photographs, split train" in card
    assert f"features in {by}: largest difference" in card
    if name == "huggingface":
        assert report["not_compared"] == "transformers is not installed"
        assert "not compared: transformers is not installed" in card
    else:
        assert report["not_compared"] is None
        assert "not compared" not in card


@pytest.mark.slow
def test_stablehlo_runs_with_jax_alone(exported, images, tiny, tmp_path):
    """In a process without this package, and in batches of any size."""
    run = simclr_jax.load(tiny)
    inputs = run.preprocessing(images)
    np.save(tmp_path / "inputs.npy", inputs)
    program = """
import pathlib, sys
import jax, numpy as np
from jax import export as jax_export
jax.config.update("jax_platforms", "cpu")
program = jax_export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
inputs = np.load("inputs.npy")
h = program.call(inputs)
one = program.call(inputs[:1])
np.testing.assert_allclose(one, h[:1], atol=1e-6)
np.save("h.npy", h)
own = [name for name in sys.modules if name.split(".")[0] in ("simclr_jax", "flax")]
assert not own, own
print(program.platforms, h.dtype)
"""
    file = exported / "stablehlo" / "encoder.stablehlo"
    # -I: neither the checkout nor PYTHONPATH can be imported from.
    command = [sys.executable, "-I", "-c", program, str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = jax_export.deserialize(bytearray(file.read_bytes())).mlir_module()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(products) >= 20
    assert all("#stablehlo<precision HIGHEST>" in line for line in products)
    assert done.stdout.strip() == "('cpu', 'cuda', 'rocm', 'tpu') float32"
    got = np.load(tmp_path / "h.npy")
    np.testing.assert_allclose(got, run.encode(images), rtol=0, atol=1e-6)


def test_stablehlo_has_no_weights_to_give(exported):
    program = simclr_jax.load(str(exported / "stablehlo"))
    for name in ("variables", "encoder"):
        with pytest.raises(AttributeError, match=f"no {name}.*--format=safetensors"):
            getattr(program, name)
    with pytest.raises(DataError, match="weights cannot be read"):
        convert.read_export(exported / "stablehlo", None)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"depth": 50, "width": 1 / 32, "sk_ratio": 0.0625},
            id="selective",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "se_ratio": 0.25,
                "batch_norm_epsilon": 1e-3,
                "first_group_projection": True,
                "max_pool_padding": "same",
                "normalization": "imagenet",
                "compute_dtype": "bfloat16",
            },
            id="excited",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_jax_formats_take_any_encoder(settings, tmp_path, images):
    run = export_runs.write(tmp_path / "run", **settings)
    pretrained = simclr_jax.load(run)
    # Computed in float32 whatever the run computed in.
    exact = encoder.without_heads(pretrained)
    inputs = exact.preprocessing(images)
    want = parity.features(exact, inputs)
    for name in ("safetensors", "stablehlo"):
        export.export(run, name, str(tmp_path / name))
        opened = simclr_jax.load(str(tmp_path / name))
        if name == "stablehlo":
            got = np.asarray(opened.program.call(inputs))
        else:
            got = parity.features(opened, inputs)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    said = json.loads((tmp_path / "safetensors" / "preprocessing.json").read_text())
    if "normalization" in settings:
        assert said["normalization"]["applied_by"] == "the exported encoder"
        assert np.abs(pretrained.encode(images) - want).max() > 1e-4
    with pytest.raises(ConfigError, match="formats that can: safetensors, stablehlo"):
        export.export(run, "huggingface", str(tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_every_weight_arrives(tmp_path):
    """Also those of ResNet-D's stem; selective kernels are in the slow tests."""
    run = export_runs.write(tmp_path / "run", sk_ratio=0.0625, se_ratio=0.25)
    original = encoder.without_heads(simclr_jax.load(run))
    settings = encoder.settings_of(original.encoder)
    formats.FORMATS["safetensors"].write(tmp_path, original)
    got = formats.FORMATS["safetensors"].read(tmp_path, settings)
    jax.tree.map(np.testing.assert_array_equal, got, original.variables)


@pytest.mark.slow
def test_torchvision_there_and_back_bit_for_bit(tmp_path, images, monkeypatch):
    """Through the folder, and through the weight file alone."""
    # A narrow encoder saves seconds; the slow tests have torchvision's widths.
    narrow = dataclasses.replace(formats.FORMATS["torchvision"], limits=())
    monkeypatch.setitem(formats.FORMATS, "torchvision", narrow)
    run = export_runs.write(tmp_path / "run", image_size=16, normalization="imagenet")
    original = simclr_jax.load(run)
    inputs = original.preprocessing(images)
    output = tmp_path / "out"
    export.export(run, "torchvision", str(output))
    tensors = load_file(output / "model.safetensors")
    assert tensors["bn1.num_batches_tracked"] == STEP
    assert len(tensors) == 120, "as many as torchvision's ResNet-18 has without fc"
    file = str(output / "model.safetensors")
    bare = convert.read(file, normalization="imagenet")
    jax.tree.map(np.testing.assert_array_equal, bare.variables, original.variables)
    same = encoder.settings_of(bare.model.encoder)
    assert same == encoder.settings_of(original.encoder)
    weights, config = convert.read_export(output, None)
    convert.write(str(tmp_path / "folder"), config, weights, str(output))
    again = simclr_jax.load(str(tmp_path / "folder"))
    want, got = (parity.features(x, inputs) for x in (original, again))
    np.testing.assert_array_equal(got, want)
    said = json.loads((output / "preprocessing.json").read_text())
    assert said["normalization"]["applied_by"] == "you, after resizing"
    assert "Then subtract the mean [0.485," in (output / "README.md").read_text()

    # timm has the same names, and says the rest in its config.
    formats.FORMATS["timm"].write(tmp_path, encoder.without_heads(original))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("resnet18", 0)
    given = config["pretrained_cfg"]
    assert given["input_size"] == [3, 16, 16]
    assert (given["crop_pct"], given["interpolation"]) == (1.0, "bicubic")
    assert given["mean"] == [0.485, 0.456, 0.406]
    assert given["std"] == [0.229, 0.224, 0.225]
    again = load_file(tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again, tensors)


def run_config(run):
    return config_dict.ConfigDict(directory.read_config(run))


@pytest.mark.parametrize("name", ["safetensors", "huggingface"])
@pytest.mark.slow
def test_convert_makes_a_run_of_an_export(name, exported, tiny, tmp_path, images):
    run = tmp_path / "run"
    path = exported / name
    if name == "safetensors":
        path /= "encoder.safetensors"
    arguments = [f"--input={path}", f"--workdir={run}"]
    if name == "huggingface":
        arguments.append("--normalization=none")
    code, out, err = commands.run("convert", *arguments)
    if name == "huggingface":
        assert code == 2
        assert "--normalization=none: must be left out" in err
        return
    assert code == 0, err
    assert "simclr_jax export, safetensors, step 7" in out
    pretrained, again = simclr_jax.load(tiny), simclr_jax.load(str(run))
    np.testing.assert_array_equal(again.encode(images), pretrained.encode(images))
    assert again.preprocessing == pretrained.preprocessing
    assert again.step == STEP
    changed = {"head", "probe"}
    kept = pretrained.config.keys() - changed
    assert {k: again.config[k] for k in kept} == {k: pretrained.config[k] for k in kept}


@pytest.mark.slow
def test_any_checkpoint_of_a_run_opens(tiny, images):
    newest = simclr_jax.load(tiny)
    old = simclr_jax.load(f"{tiny}/checkpoints/3")
    assert (newest.step, old.step) == (STEP, 3)
    want = simclr_jax.load(tiny, step=3).encode(images)
    np.testing.assert_array_equal(old.encode(images), want)
    assert np.abs(want - newest.encode(images)).max() > 1e-3
    with pytest.raises(ConfigError, match="step=3: must be left out"):
        simclr_jax.load(f"{tiny}/checkpoints/3", step=3)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nothing", "does not exist"),
        ("file", "is a file"),
        ("folder", "holds no check"),
    ],
)
def test_what_cannot_be_opened_is_told_what_can(path, says, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointNotFound, match=says) as caught:
        simclr_jax.load(str(tmp_path / path))
    assert str(tmp_path / path) in str(caught.value)
    for understood in ("a run directory", "RUN/checkpoints/STEP", *formats.FORMATS):
        assert understood in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "encoder.safetensors").write_bytes(b"x"), "cannot be read"),
        (lambda f: (f / "encoder.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "preprocessing.json").unlink(), "preprocessing.json"),
        (lambda f: (f / "encoder.json").write_text("{}"), "format is None"),
        (lambda f: (f / "encoder.json").write_text("[]"), "must hold a JSON object"),
        (lambda f: change(f, "format", "stablehlo"), "encoder.stablehlo: cannot be"),
        (lambda f: change(f, "encoder", {"depth": 7}), "encoder.json"),
        (lambda f: change(f, "format", "orbax"), "orbax, which was removed; export"),
        (lambda f: change(f, "encoder", "width", 1 / 8), "has shape.* must be"),
        (lambda f: change(f, "encoder", "depth", 34), "is missing"),
    ],
)
def test_damaged_exports_are_named(damage, message, exported, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (exported / "safetensors").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        simclr_jax.load(str(folder))
    assert str(folder) in str(caught.value)


def change(folder, *keys_and_value):
    *keys, last, value = keys_and_value
    content = json.loads((folder / "encoder.json").read_text())
    inner = content
    for key in keys:
        inner = inner[key]
    inner[last] = value
    (folder / "encoder.json").write_text(json.dumps(content))


def settings_of(**arguments):
    return encoder.settings_of(create_encoder(**{"depth": 50, **arguments}))


REFUSED = {
    ("torchvision", "width"): {"width": 2},
    ("timm", "width"): {"width": 0.5},
    ("timm", "stem"): {"stem": "cifar"},
    ("huggingface", "stem"): {"stem": "cifar"},
    ("torchvision", "sk_ratio"): {"sk_ratio": 0.0625},
    ("huggingface", "sk_ratio"): {"sk_ratio": 0.0625},
    ("timm", "se_ratio"): {"se_ratio": 0.25},
    ("torchvision", "max_pool_padding"): {"max_pool_padding": "same"},
    ("huggingface", "first_group_projection"): {
        "depth": 18,
        "first_group_projection": True,
    },
    ("timm", "batch_norm_epsilon"): {"batch_norm_epsilon": 1e-3},
    ("stablehlo", "9.4 GB of weights"): {"width": 10},
}
FAST_REFUSED = [
    ("torchvision", "width"),
    ("huggingface", "first_group_projection"),
]


@pytest.mark.parametrize(
    "case",
    [
        # The rest has other networks, whose shapes take seconds, and the same check.
        pytest.param(case, marks=[] if case in FAST_REFUSED else pytest.mark.slow)
        for case in REFUSED
    ],
    ids=" ".join,
)
def test_what_a_format_cannot_express_is_refused(case):
    name, needle = case
    with pytest.raises(ConfigError, match=f"--format={name}: .*{needle}") as caught:
        formats.check(name, settings_of(**REFUSED[case]))
    able = str(caught.value).rpartition("formats that can: ")[2].split(", ")
    assert name not in able
    assert "safetensors" in able


TAKEN = {
    "torchvision": [{"stem": "cifar", "max_pool_padding": "same"}, {"depth": 200}],
    "timm": [{}, {"depth": 34}, {"first_group_projection": True}],
    "huggingface": [{"width": 2}, {"depth": 18, "width": 0.25}],
    "stablehlo": [{"width": 4}, {"sk_ratio": 0.0625, "se_ratio": 0.5}],
}


@pytest.mark.parametrize("name", first(3, [*TAKEN]))
def test_what_a_format_can_express_is_taken(name):
    """Projections of bottlenecks and the padding of an unused max-pool are accepted."""
    for arguments in TAKEN[name]:
        formats.check(name, settings_of(**arguments))


def test_settings_are_those_of_a_run(tiny):
    """A new setting of an encoder must be exported too."""
    settings = encoder.settings_of(simclr_jax.load(tiny).encoder)
    config = run_config(tiny)
    assert settings == build.encoder_settings(config)


@pytest.mark.parametrize(
    "fault",
    ["weights", *(pytest.param(x, marks=pytest.mark.slow) for x in ("nan", "library"))],
)
def test_another_function_leaves_nothing_behind(fault, tiny, tmp_path, monkeypatch):
    name = "huggingface" if fault == "library" else "safetensors"
    write = formats.FORMATS[name].write

    def damaged(folder, pretrained):
        factor = np.nan if fault == "nan" else 1.01
        scaled = jax.tree.map(lambda x: x * np.float32(factor), pretrained.variables)
        return write(folder, dataclasses.replace(pretrained, variables=scaled))

    if fault == "library":
        monkeypatch.setattr(torch_peers, "missing", lambda library: None)
        monkeypatch.setattr(torch_peers, "version", lambda library: f"{library} 5")
        monkeypatch.setattr(
            torch_peers,
            "features",
            lambda _, __, ___, inputs: np.ones((len(inputs), 32)),
        )
        message = "other features in transformers 5"
    else:
        broken = dataclasses.replace(formats.FORMATS[name], write=damaged)
        monkeypatch.setitem(formats.FORMATS, name, broken)
        message = "other features in simclr_jax.load"
    with pytest.raises(ExportFailed, match=message):
        export.export(tiny, name, str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_differences_are_measured_against_the_largest_feature():
    reference = np.array([[4.0, -8.0], [0.5, 0.0]], np.float32)
    h = reference + np.array([[0, 4e-4], [0, 0]], np.float32)
    got = parity.compare(reference, h, "library 1")
    assert got["max_abs"] == pytest.approx(4e-4, rel=1e-2)
    assert got["mean_abs"] == pytest.approx(1e-4, rel=1e-2)
    assert got["relative"] == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(ExportFailed, match=r"by up to 0\.001"):
        parity.compare(reference, reference + np.float32(1e-3), "library 1")
    with pytest.raises(ExportFailed, match=r"shape \(1, 2\)"):
        parity.compare(reference, reference[:1], "library 1")


@pytest.mark.slow
def test_figures_are_those_of_the_exported_weights(tmp_path):
    run = export_runs.write(tmp_path / "run")
    own = encoder.checksum(simclr_jax.load(run).variables)
    receipt = {
        "protocol": "knn",
        "metric": "top-1 accuracy",
        "value": 0.6667,
        "dataset": "photographs",
        "test_split": "test",
        "num_test": 1080,
        "layer": 0,
    }
    (tmp_path / "run" / "eval").mkdir()
    for name, checksum in (("knn", own), ("linear", "0" * 64)):
        content = {**receipt, "protocol": name, "encoder_checksum_after": checksum}
        (tmp_path / f"run/eval/{name}.json").write_text(json.dumps(content))
    other = {**receipt, "dataset": "cifar100", "encoder_checksum_after": own}
    (tmp_path / "run" / "eval" / "cifar100").mkdir()
    (tmp_path / "run/eval/cifar100/knn.json").write_text(json.dumps(other))
    mean = {key: other[key] for key in other if key not in ("test_split", "num_test")}
    (tmp_path / "run/eval/transfer.json").write_text(json.dumps(mean))
    # A killed export may leave this folder.
    (tmp_path / ".out.unfinished" / "stale").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    export.export(run, "safetensors", str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert not (tmp_path / "out" / "stale").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    row = "| knn | top-1 accuracy | 66.7 % | photographs, test (1080 images) |"
    assert row in card
    assert row.replace("photographs", "cifar100") in card
    assert card.count("| knn |") == 2
    assert "| linear" not in card


def test_images_to_compare_on(tiny, tmp_path):
    config = directory.read_config(tiny)
    samples = parity.images_of_run(config)
    found, about = samples.images, samples.description
    assert about == "16 images of photographs, split test"
    everything = photographs.load("test")[0]
    np.testing.assert_array_equal(found[0], everything[0])
    np.testing.assert_array_equal(found[-1], everything[-1])
    config["data"]["dataset"] = f"folder:{tmp_path}/none"
    samples = parity.images_of_run(config)
    found, about = samples.images, samples.description
    assert about.startswith("16 photographs of scikit-image (split test of folder:")
    assert found[0].shape == (512, 512, 3)

    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=f"--images={tmp_path}: holds no image"):
        parity.images_of_folder(str(tmp_path))
    Image.new("L", (5, 4), 9).save(tmp_path / "grey.png")
    (image,) = parity.images_of_folder(str(tmp_path)).images
    assert image.shape == (4, 5, 3)
    assert (image == 9).all()


def test_flags_that_cannot_be(tiny, tmp_path):
    cases = {
        f"--output={tiny}: must be new or empty": {"output": tiny},
        "--pth: must be left out with --format=timm": {"name": "timm", "pickled": True},
        "--format=orbax: must be one of torchvision, timm": {"name": "orbax"},
        "--pth: needs PyTorch": {"name": "torchvision", "pickled": True},
        "has no checkpoint of step 5; there are 3, 7": {"step": 5},
        "--images=nowhere: no such folder": {"images": "nowhere"},
        "holds no checkpoint of a run": {"workdir": str(tmp_path)},
    }
    for message, arguments in cases.items():
        given = {"workdir": tiny, "name": "safetensors", "output": str(tmp_path / "o")}
        with pytest.raises(InvalidInput, match=message):
            export.export(**{**given, **arguments})
    assert not (tmp_path / "o").exists()


def test_a_run_is_read_once(tiny, tmp_path, monkeypatch):
    calls = []
    for name in ("open_for_reading", "read_description"):
        function = getattr(checkpoints, name)
        monkeypatch.setattr(
            checkpoints,
            name,
            lambda *args, name=name, function=function: (
                calls.append(name) or function(*args)
            ),
        )
    export.export(tiny, "safetensors", str(tmp_path / "out"))
    assert calls == ["open_for_reading", "read_description"]


@pytest.mark.slow
def test_command_ends_with_one_line(tiny, tmp_path):
    arguments = [f"--workdir={tiny}", f"--output={tmp_path / 'out'}"]
    code, _, err = commands.run("export", *arguments, "--format=timm")
    assert code == 2
    assert err.startswith("error: --format=timm: cannot express this encoder")
    assert len(err.splitlines()) == 1
    code, out, err = commands.run(
        "export", *arguments, "--format=safetensors", "--step=3"
    )
    assert code == 0, err
    assert "features in simclr_jax.load: largest difference" in out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert simclr_jax.load(str(tmp_path / "out")).step == 3


def test_help_names_every_format():
    """The docstring names them, since --help does not wait for JAX."""
    page = ast.get_docstring(
        ast.parse((commands.ROOT / "simclr_jax" / "export.py").read_text())
    )
    (text,) = re.findall(r"^Formats: (.*?)\.", page, re.MULTILINE | re.DOTALL)
    named = re.findall(r"\w+", re.sub(r"\(.*?\)|\band\b", "", text, flags=re.DOTALL))
    assert tuple(named) == tuple(formats.FORMATS)


def test_names_of_huggingface():
    """As `transformers` 5.24 prints them, for a basic and a bottleneck block."""
    theirs = {
        "embedder.embedder.convolution.weight": "conv1.weight",
        "embedder.embedder.normalization.running_var": "bn1.running_var",
        "encoder.stages.1.layers.0.shortcut.convolution.weight": "layer2.0.downsample.0"
        ".weight",
        "encoder.stages.1.layers.0.shortcut.normalization.bias": "layer2.0.downsample.1"
        ".bias",
        "encoder.stages.3.layers.10.layer.2.convolution.weight": "layer4.10.conv3"
        ".weight",
        "encoder.stages.0.layers.1.layer.0.normalization.weight": "layer1.1.bn1.weight",
    }
    arrays = dict.fromkeys(theirs, np.zeros(1))
    assert list(to_torchvision_names(arrays, file="f")) == list(theirs.values())
    for name in ("classifier.1.weight", "embedder.embedder.activation.weight"):
        with pytest.raises(DataError, match=f"file f: {name} is not a name"):
            to_torchvision_names({name: np.zeros(1)}, file="f")


def test_library_that_cannot_open_an_export(tmp_path, monkeypatch):
    """PyTorch's process fails; the error has the last line of its output."""
    monkeypatch.setattr(torch_peers, "version", lambda library: f"{library} 1")
    monkeypatch.setattr(torch_peers, "_MODULE", "simclr_jax.no_such_module")
    inputs = np.zeros((1, 8, 8, 3), np.float32)
    with pytest.raises(ExportFailed, match=r"timm 1 cannot open .*no_such_module"):
        torch_peers.features("timm", tmp_path, settings_of(), inputs)
    assert sorted(DEPTHS) == [10, 18, 34, 50, 101, 152, 200]
    assert not list(pathlib.Path(tmp_path).iterdir())
