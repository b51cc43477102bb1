"""Programs of the compiled operations, for tests."""

import numpy as np

from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import host_kernels, host_op

# Factors of a jitter that leave an image unchanged.
NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def line(name, ranges=(), number=0.0, probability=1.0):
    """A program of one operation."""
    filled = np.zeros((4, 2))
    filled[: len(ranges)] = np.reshape(ranges, (-1, 2))
    kind = host_kernels.OPERATIONS.index(name)
    return np.float32([[kind, 0, probability, *filled.reshape(-1), number]])


def run_program(program, views, u):
    """The program on views float32 [N, S, S, 3] with draws [N, D]."""
    views = np.asarray(views, np.float32)
    no_boxes = np.zeros((len(views), 4), np.int32)
    operation = tf.function(
        lambda views, u: host_op.views(
            None, no_boxes, views, u, program, size=views.shape[1], as_floats=True
        ),
        autograph=False,
    )
    return operation(views, np.asarray(u, np.float32)).numpy()


def on_squares(program, images, u):
    """The same for images [N, H, W, 3], tiled so that each becomes a square."""
    height, width = images.shape[1:3]
    side = np.lcm(height, width)
    squares = np.tile(images, (1, side // height, side // width, 1))
    return run_program(program, squares, u)[:, :height, :width]
