"""Previews show the views of training."""

import itertools

import numpy as np
from PIL import Image

from simclr_jax.configs import smoke
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.preview import picture
from simclr_jax.training import input_pipeline


def test_a_preview_shows_the_first_views_of_training(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 10, 12, 3), np.uint8)
    labels = np.arange(20)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": 8,
            "batch.batch_size": 8,
            "schedule.train_steps": 6,
            # Nothing that takes long to compile.
            "augment.operations": ("crop", "flip"),
            "data.dataset": f"npz:{tmp_path}/data.npz",
        }
    )
    path = tmp_path / "views.png"
    picture.write_preview(config, str(path), num_images=8, num_views=2)
    pixels = np.asarray(Image.open(path))
    tile = 64 + 2  # views of 8 pixels are enlarged to 64, with 2 white ones between
    assert pixels.shape == (8 * tile - 2, 3 * tile - 2, 3)
    source = ArraySource(images, labels, name="arrays")
    batches = input_pipeline.local_batches(config, source, start_step=0)
    expected = next(batches)["images"]
    for row, column in itertools.product(range(8), range(2)):
        y, x = row * tile, (column + 1) * tile
        shown = pixels[y : y + 64 : 8, x : x + 64 : 8]
        np.testing.assert_array_equal(shown, expected[row, column])
