"""SimCLR's augmentations in the form that tests of views share."""

import numpy as np

from simclr_jax.data.sampling import draws
from simclr_jax.data.tf_cpu import tf

AREA_AND_RATIO = {
    "area_min": 0.08,
    "area_max": 1.0,
    "ratio_min": 3 / 4,
    "ratio_max": 4 / 3,
}
CROP = {"sampler": "reference", **AREA_AND_RATIO}
JITTER = {
    "strength": 1.0,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "brightness_mode": "multiplicative",
}
BLUR = {"sigma_min": 0.1, "sigma_max": 2.0}


def view_in_graph(view):
    """A view as the pipeline runs it: images come in any size."""
    specs = [
        tf.TensorSpec([None, None, 3], tf.uint8),
        tf.TensorSpec([4], tf.int32),
        tf.TensorSpec([None], tf.float32),
    ]
    return tf.function(
        lambda image, box, u: view(image, tf.unstack(box), u),
        input_signature=specs,
        autograph=False,
    )


def assert_inside(boxes, height, width):
    """That boxes [N, 4] lie within an image and are not empty."""
    y, x, h, w = boxes.T
    assert (boxes >= 0).all()
    assert (h > 0).all()
    assert (w > 0).all()
    assert (y + h <= height).all()
    assert (x + w <= width).all()


def colour_cases(colors, group, name):
    """What the reference makes of a group's images by one adjustment.

    Returns:
      ([(factor, images [N, H / 2, W / 2, 3])], tolerance): every other pixel.
    """
    keys = [key for key in colors if key.startswith(f"{group}/{name}/")]
    assert keys
    cases = [(float(key.split("/")[-1]), colors[key]) for key in keys]
    return cases, 5e-6 if name in ("hue", "saturation") else 2e-6


def draws_of(name, count):
    """Uniform numbers of one operation for `count` views."""
    generator = np.random.default_rng(list(draws.COUNTS).index(name))
    return generator.random((count, draws.COUNTS[name]), np.float32)
