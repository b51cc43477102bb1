"""Exports as torchvision, timm and transformers open them.

    bash launch/test.sh -m slow tests/weights/test_libraries.py

The command compares features in a Python that has the libraries; then the lines of the
model card, as they are printed, are run there without this package, and their features
are compared with the run's.
"""

import json
import os
import subprocess

import commands
import export_runs
import library_environment
import numpy as np
import pytest
from PIL import Image

import simclr_jax
from simclr_jax.data.sources import photographs

pytestmark = pytest.mark.slow

CASES = {
    "torchvision 18": ("torchvision", {"depth": 18}),
    "torchvision 50": ("torchvision", {"depth": 50}),
    "torchvision 18 cifar": ("torchvision", {"depth": 18, "stem": "cifar"}),
    "torchvision 50 cifar": ("torchvision", {"depth": 50, "stem": "cifar"}),
    "torchvision 200": ("torchvision", {"depth": 200}),
    "timm 18": ("timm", {"depth": 18}),
    "timm 50": ("timm", {"depth": 50, "normalization": "imagenet"}),
    "huggingface 18": ("huggingface", {"depth": 18, "normalization": "imagenet"}),
    "huggingface 50": ("huggingface", {"depth": 50}),
    "huggingface 18 2x": ("huggingface", {"depth": 18, "width": 2}),
    "huggingface 50 2x": ("huggingface", {"depth": 50, "width": 2}),
}
SIZE = 64
# Before and after the lines of a card, which say `images` and make a model or h.
BEFORE = """
import numpy as np, sys
from PIL import Image
pixels = [Image.fromarray(image) for image in np.load("pixels.npy")]
"""
PREPARED = """
import torch
images = np.load("inputs.npy").transpose(0, 3, 1, 2)
images = torch.from_numpy(np.ascontiguousarray(images))
"""
AFTER = {
    "torchvision": "",
    "timm": """
import torch
h = model(torch.stack([transform(image) for image in pixels]))
assert model.num_classes == 0
""",
    "huggingface": "",
}
LAST = """
assert not [name for name in sys.modules if name.startswith(("simclr_jax", "jax"))]
np.save("h.npy", h.detach().numpy())
"""


@pytest.fixture(scope="session")
def python():
    return str(library_environment.make())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(commands.ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("case", CASES)
def test_features_in_the_library(case, python, tmp_path):
    name, settings = CASES[case]
    run = export_runs.write(
        tmp_path / "run", image_size=SIZE, **{"width": 1.0, **settings}
    )
    output = tmp_path / "out"
    pth = ["--pth"] if name == "torchvision" else []
    arguments = [f"--workdir={run}", f"--format={name}", f"--output={output}", *pth]
    done = subprocess.run(
        [python, "-m", "simclr_jax.export", *arguments],
        cwd=commands.ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "parity.json").read_text())
    library = report["comparisons"][0]
    assert library["library"].split()[0] == name.replace("huggingface", "transformers")
    assert f"features in {library['library']}: largest" in done.stdout
    assert report["not_compared"] is None
    assert report["scale"] > 0.1
    # Over the blocks of the deepest one, the formula's weights make numbers of 1000.
    allowed = 1e-4 if settings["depth"] <= 50 else 1e-5 * report["scale"]
    assert library["max_abs"] < allowed

    # Patches have the size of the inputs: no library has anything to resize.
    photograph = photographs.load_whole()[0]
    patches = np.stack([photograph[i : i + SIZE, i : i + SIZE] for i in (0, 128, 256)])
    pretrained = simclr_jax.load(run)
    np.save(tmp_path / "pixels.npy", patches)
    inputs = pretrained.preprocessing(patches)
    np.save(tmp_path / "inputs.npy", inputs)
    (_, _, rest) = (output / "README.md").read_text().partition("```python\n")
    lines = rest.partition("```")[0]
    given = "images = pixels\n" if name == "huggingface" else PREPARED
    program = BEFORE + given + lines + AFTER[name] + LAST
    done = subprocess.run(
        [python, "-c", program],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    got, want = np.load(tmp_path / "h.npy"), pretrained.encode(patches)
    print(f"{case}: {library}; by the card {np.abs(got - want).max():.1e}")
    np.testing.assert_allclose(got, want, rtol=0, atol=allowed)
    if pth:
        program = (
            "import torch; from safetensors.torch import load_file\n"
            "ours = load_file('out/model.safetensors')\n"
            "theirs = torch.load('out/model.pth', weights_only=True)\n"
            "assert ours.keys() == theirs.keys()\n"
            "assert all(torch.equal(ours[name], theirs[name]) for name in ours)\n"
        )
        subprocess.run([python, "-c", program], cwd=tmp_path, check=True)


CLASSES = ('a "b"', "two\nlines", "\U0001f98a", "x" * 300, "<script>")
LOGITS = {
    "torchvision": "",
    "timm": """
import torch
images = torch.stack([transform(image) for image in pixels])
logits, names = model(images), model.pretrained_cfg["label_names"]
""",
    "huggingface": """
from transformers import pipeline
found = pipeline("image-classification", model="out")(pixels[0], top_k=5)
assert found[0]["label"] == names[int(logits[0].argmax())], found
assert {one["label"] for one in found} == set(names)
assert model.config.label2id == {name: i for i, name in enumerate(names)}
""",
}


@pytest.mark.parametrize("name", LOGITS)
def test_classifiers_in_the_library(name, python, tmp_path):
    """By the command, by the lines of the card, and in Hugging Face's pipeline."""
    run = export_runs.write(
        tmp_path / "run", image_size=SIZE, width=1.0, classes=CLASSES
    )
    output = tmp_path / "out"
    arguments = [f"--workdir={run}", f"--format={name}", f"--output={output}"]
    done = subprocess.run(
        [python, "-m", "simclr_jax.export", *arguments],
        cwd=commands.ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "parity.json").read_text())
    kinds = [(c["output"], c["library"].split()[0]) for c in report["comparisons"]]
    library = name.replace("huggingface", "transformers")
    assert kinds[:2] == [("features", library), ("logits", library)]

    photograph = photographs.load_whole()[0]
    patches = np.stack([photograph[i : i + SIZE, i : i + SIZE] for i in (0, 128, 256)])
    pretrained = simclr_jax.load(run)
    np.save(tmp_path / "pixels.npy", patches)
    np.save(tmp_path / "inputs.npy", pretrained.preprocessing(patches))
    (_, _, rest) = (output / "README.md").read_text().partition("```python\n")
    lines = rest.partition("```")[0]
    if name == "timm":
        lines = lines.partition("\nlogits")[0] + "\n"
    given = "images = pixels\n" if name == "huggingface" else PREPARED
    last = LAST.replace("h.detach()", "logits.detach()")
    last += f"\nassert list(names) == {list(CLASSES)!r}\n"
    done = subprocess.run(
        [python, "-c", BEFORE + given + lines + LOGITS[name] + last],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    got, want = np.load(tmp_path / "h.npy"), pretrained.classify(patches)
    print(f"{name}: logits by the card {np.abs(got - want).max():.1e}")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


# By the libraries' own transforms -----------------------------------------------------

OWN = "images = torch.stack([transform(image) for image in pixels])\n"


@pytest.mark.parametrize(
    ("name", "normalization"),
    [
        ("torchvision", "0.5/0.5"),
        ("timm", "0.45,0.4,0.35/0.25"),
        ("huggingface", "0.1,0.2,0.3/0.4,0.5,0.6"),
    ],
)
def test_a_large_photograph_through_the_library_itself(
    name, normalization, python, tmp_path
):
    """Resizing, mean and standard deviation are those of the run."""
    run = export_runs.write(
        tmp_path / "run",
        image_size=224,  # 0.875 of a whole number, as the libraries resize to
        crop_proportion=0.875,
        resize="bicubic_antialias",
        width=1.0,
        normalization=normalization,
    )
    output = tmp_path / "out"
    arguments = [f"--workdir={run}", f"--format={name}", f"--output={output}"]
    done = subprocess.run(
        [python, "-m", "simclr_jax.export", *arguments],
        cwd=commands.ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    generator = np.random.default_rng(0)
    pixels = []
    for _ in range(3):
        blobs = Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8))
        enlarged = np.asarray(blobs.resize((1600, 1200), Image.Resampling.BICUBIC))
        grain = generator.integers(-25, 25, enlarged.shape)
        pixels.append(np.clip(enlarged.astype(int) + grain, 0, 255).astype(np.uint8))
    np.save(tmp_path / "pixels.npy", np.stack(pixels))
    (_, _, rest) = (output / "README.md").read_text().partition("```python\n")
    lines = rest.partition("```")[0]
    given = "images = pixels\n" if name == "huggingface" else "import torch\n"
    if name == "torchvision":
        lines = lines.replace("h = model", OWN + "h = model")
    done = subprocess.run(
        [python, "-c", BEFORE + given + lines + AFTER[name] + LAST],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    got, want = np.load(tmp_path / "h.npy"), simclr_jax.load(run).encode(pixels)
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    found = (got * want).sum(axis=1) / lengths
    print(f"{name}: {found}")
    assert found.min() > 0.995
