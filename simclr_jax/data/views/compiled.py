"""The compiled form of the views of a composition; see `host.py`.

SimCLR's own operations are compiled (`host_kernels.py`) and run inside TensorFlow
(`host_op.py`); the other operations of a composition run between them as
`definition.py` has them.
"""

import functools
from collections.abc import Callable, Sequence

from simclr_jax.data.sampling import draws
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, host_kernels, host_op, host_program
from simclr_jax.data.views.composition import Composition

register = host_op.register


def _parts(operations: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Runs of compiled operations, and the other operations between the runs."""
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


def compose(
    composition: Composition,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """The views of a composition; see `host.compose`."""
    views_of = functools.partial(
        host_op.views,
        size=composition.image_size,
        antialias=composition.antialias,
    )
    runs, others = _parts(composition.operations)
    programs = [host_program.program(composition, names) for names in runs]

    def views(images: tf.Tensor, boxes: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        source: tuple[tf.Tensor | None, tf.Tensor | None] = (images, None)
        for program, name in zip(programs, others, strict=False):
            floats = views_of(
                source[0], boxes, source[1], uniform, program, as_floats=True
            )
            source = (None, _one_by_one(composition, name, floats, uniform))
        return views_of(source[0], boxes, source[1], uniform, programs[-1])

    return views


def _one_by_one(
    composition: Composition, name: str, images: tf.Tensor, uniform: tf.Tensor
) -> tf.Tensor:
    """An operation of `definition.py` on images float32 [..., S, S, 3]."""
    u = draws.by_operation(uniform, composition.operations)[name]
    settings = composition.settings[name]
    result = tf.map_fn(
        lambda one: definition.OPERATIONS[name](*one, **settings),
        (
            tf.reshape(images, (-1, *images.shape[-3:])),
            tf.reshape(u, (-1, draws.COUNTS[name])),
        ),
        fn_output_signature=tf.float32,
    )
    return tf.ensure_shape(tf.reshape(result, tf.shape(images)), images.shape)
