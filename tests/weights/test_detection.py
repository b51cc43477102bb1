"""The lines of docs/detection.md, run as they are printed on a real export."""

import os
import re
import subprocess

import commands
import export_runs
import jax
import jax.numpy as jnp
import library_environment
import numpy as np
import pytest
from jax import export as jax_export

import simclr_jax
from simclr_jax.data.sources import photographs
from simclr_jax.models.resnet import feature_maps, strides
from simclr_jax.weights import encoder, export, jax_formats, parity

pytestmark = pytest.mark.slow

BLOCKS = re.findall(
    r"```python\n(.*?)```",
    (commands.ROOT / "docs" / "detection.md").read_text(),
    re.DOTALL,
)
IMAGES = """
import sys, numpy as np
images = np.load("images.npy")
"""
TORCH = """
import torch
torch.set_grad_enabled(False)
torch.manual_seed(0)
images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
"""
SAVE = """
assert [m.shape[2] for m in (c2, c3, c4, c5)] == [16, 8, 4, 2]
"""
POOL = """
np.save("h.npy", c5.numpy().mean((2, 3)))
"""
OWN = {
    "FasterRCNN": POOL
    + "assert boxes.shape[1] == 4\nassert len(model(list(images))) == 2",
    "deeplabv3": """
assert mask.shape == (2, 21, 64, 96)
maps = model.backbone(images)["out"]
assert maps.shape == (2, 2048, 8, 12), maps.shape
""",
    "timm": SAVE + POOL,
    "ResNetBackbone": SAVE + POOL,
    "jax": """
assert [m.shape[1:3] for m in (c2, c3, c4, c5)] == [(16, 24), (8, 12), (4, 6), (2, 3)]
np.save("h.npy", np.asarray(c5).mean((1, 2)))
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`encoders/` with every format of a ResNet-50; its images and their h."""
    root = tmp_path_factory.mktemp("detection")
    run = export_runs.write(root / "run", image_size=64, depth=50, width=1.0)
    (root / "encoders").mkdir()
    for name in ("torchvision", "timm", "huggingface", "stablehlo"):
        output = str(root / "encoders" / name)
        export.export(run, name, output, pyramid=name == "stablehlo")
    photograph = photographs.load_whole()[0]
    images = np.stack([photograph[i : i + 64, i : i + 96] for i in (0, 128)])
    images = images.astype(np.float32) / 255
    np.save(root / "images.npy", images)
    original = encoder.without_heads(simclr_jax.load(run))
    np.save(root / "want.npy", parity.features(original, images))
    return root


@pytest.mark.parametrize("library", OWN)
def test_the_lines_of_the_page(library, folder):
    (block,) = (block for block in BLOCKS if library in block)
    before = IMAGES if library == "jax" else IMAGES + TORCH
    (folder / "h.npy").unlink(missing_ok=True)
    done = subprocess.run(
        [str(library_environment.make()), "-c", before + block + OWN[library]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if library == "deeplabv3":  # dilated: not the same features
        return
    got, want = np.load(folder / "h.npy"), np.load(folder / "want.npy")
    print(f"{library}: {np.abs(got - want).max():.1e} of {np.abs(want).max():.2g}")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_every_block_of_the_page_runs():
    assert len(BLOCKS) == len(OWN)


@pytest.mark.parametrize(
    "settings",
    [{"stem": "cifar"}, {"depth": 50, "width": 1 / 32, "sk_ratio": 0.0625}],
    ids=["cifar", "selective"],
)
def test_pyramids_of_other_encoders(settings, tmp_path):
    run = export_runs.write(tmp_path / "run", **settings)
    original = encoder.without_heads(simclr_jax.load(run))
    jax_formats.write_pyramid(tmp_path, original)
    program = jax_formats.read_program(tmp_path, jax_formats.PYRAMID)
    last = strides(original.encoder)[-1]
    for height, width in ((last, 2 * last), (3 * last, last)):
        images = jax.random.uniform(jax.random.key(0), (2, height, width, 3))
        got = program.call(images)
        with jax.default_matmul_precision("highest"):
            want = feature_maps(original.encoder, original.variables, images)
        for one, other in zip(got, want, strict=True):
            scale = float(jnp.abs(other).max())
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * scale)
    with pytest.raises(ValueError, match="shape"):
        program.call(jnp.zeros((1, last + 1, last, 3)))
    assert isinstance(program, jax_export.Exported)
