"""The augmentations of `augment.py`, fast on the host's cores.

Same draws, same views, up to rounding. SimCLR's own operations are compiled
(`kernels.py`) and run inside TensorFlow (`views_op.py`); the others of a composition
are taken from `augment.py`, which stays the definition.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from simclr_jax.data.sampling import draws
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, host_kernels, host_op
from simclr_jax.data.views.composition import Composition

# images uint8 [..., H, W, 3], boxes int32 [..., V, 4], draws float32 [..., V, D] ->
# uint8 [..., V, S, S, 3]
Views = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def program(composition: Composition, names: Sequence[str]) -> np.ndarray:
    """Compiled operations as the table that `kernels` reads: [lines, PROGRAM_WIDTH]."""
    table = np.zeros((len(names), host_kernels.PROGRAM_WIDTH), np.float32)
    for line, name in zip(table, names, strict=True):
        before = composition.operations[: composition.operations.index(name)]
        settings = dict(composition.settings[name])
        ranges: Sequence[tuple[float, float]] = ()
        number = 0.0
        probability = settings.pop("probability")
        if name == "color_jitter":
            ranges = draws.jitter_ranges(**settings)
            number = float(settings["brightness_mode"] == "additive")
        elif name == "blur":
            ranges = ((settings["sigma_min"], settings["sigma_max"]),)
            fraction = np.float32(settings["kernel_fraction"])
            number = int(np.float32(composition.image_size) * fraction) // 2
        filled = np.ravel([(low, high - low) for low, high in ranges])
        line[0] = host_kernels.OPERATIONS.index(name)
        line[1:3] = draws.count(before), probability
        line[host_kernels.RANGES : host_kernels.RANGES + len(filled)] = filled
        line[host_kernels.NUMBER] = number
    return table


def _parts(operations: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Runs of compiled operations, and the single others that stand between them."""
    runs: list[list[str]] = [[]]
    others = []
    for name in operations:
        if name == "crop":
            continue
        if name in host_kernels.OPERATIONS:
            runs[-1].append(name)
        else:
            others.append(name)
            runs.append([])
    return runs, others


@functools.lru_cache(maxsize=8)
def compose(composition: Composition) -> Views:
    """The views of `augment.compose`, fast, for graphs of TensorFlow.

    Returns:
      views(images uint8 [H, W, 3], boxes int32 [V, 4], draws float32 [V, D]) -> uint8
      [V, S, S, 3]; also of several images [n, H, W, 3], all with a leading n.
    """
    size = composition.image_size
    runs, others = _parts(composition.operations)
    programs = [program(composition, names) for names in runs]

    def views(images: tf.Tensor, boxes: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        source: tuple[tf.Tensor | None, tf.Tensor | None] = (images, None)
        for program, name in zip(programs, others, strict=False):
            made = host_op.views(
                source[0], boxes, source[1], uniform, program, size=size, as_floats=True
            )
            source = (None, _one_by_one(composition, name, made, uniform))
        return host_op.views(
            source[0], boxes, source[1], uniform, programs[-1], size=size
        )

    return views


def _one_by_one(
    composition: Composition, name: str, images: tf.Tensor, uniform: tf.Tensor
) -> tf.Tensor:
    """An operation of `augment.py` on images float32 [..., S, S, 3]."""
    own = draws.by_operation(uniform, composition.operations)[name]
    settings = composition.settings[name]
    result = tf.map_fn(
        lambda one: definition.OPERATIONS[name](*one, **settings),
        (
            tf.reshape(images, (-1, *images.shape[-3:])),
            tf.reshape(own, (-1, draws.COUNTS[name])),
        ),
        fn_output_signature=tf.float32,
    )
    return tf.ensure_shape(tf.reshape(result, tf.shape(images)), images.shape)
