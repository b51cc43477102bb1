"""Public names of the augmentations in TensorFlow, for use outside training.

Images are float32 [H, W, 3] in [0, 1], one at a time; `views/definition.py` documents
each operation. The same names for batches on accelerators are in `augment_jax`.
"""

from simclr_jax.data.views.definition import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    center_crop_and_resize,
    color_jitter,
    crop_and_resize,
    gaussian_blur,
    random_resized_crop,
    to_grayscale,
)

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "center_crop_and_resize",
    "color_jitter",
    "crop_and_resize",
    "gaussian_blur",
    "random_resized_crop",
    "to_grayscale",
]
