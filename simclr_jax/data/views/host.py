"""Views on the host's cores, as graph operations: compiled, or as they are defined.

Both forms take the same draws and give the same views up to rounding. The compiled form
(`compiled.py`) needs Numba and TensorFlow's C interface and is several times as fast.
The graph form runs the operations of `definition.py`.
"""

import functools
import importlib
from collections.abc import Callable

from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition
from simclr_jax.data.views.composition import Composition

# images uint8 [..., H, W, 3], boxes int32 [..., V, 4], draws float32 [..., V, D] ->
# uint8 [..., V, S, S, 3]
Views = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


@functools.lru_cache(maxsize=8)
def compose(composition: Composition, *, compiled: bool = True) -> Views:
    """The views of a composition, for graphs of TensorFlow.

    Args:
      composition: of the views.
      compiled: the form; requires that `host_form.unavailable()` is None.

    Returns:
      views(images uint8 [H, W, 3], boxes int32 [V, 4], draws float32 [V, D]) -> uint8
      [V, S, S, 3]; also for several images [n, H, W, 3], all with a leading n.
    """
    if not compiled:
        return _in_graph(composition)
    # Imported here, since it needs Numba.
    module = importlib.import_module("simclr_jax.data.views.compiled")
    views: Views = module.compose(composition)
    return views


def _in_graph(composition: Composition) -> Views:
    view = definition.compose(
        composition.operations,
        composition.settings,
        image_size=composition.image_size,
        antialias=composition.antialias,
    )

    def of_image(image: tf.Tensor, boxes: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda pair: view(image, tf.unstack(pair[0], 4), pair[1]),
            (boxes, uniform),
            fn_output_signature=tf.uint8,
        )

    def views(images: tf.Tensor, boxes: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        if len(images.shape) == 3:
            return of_image(images, boxes, uniform)
        return tf.map_fn(
            lambda one: of_image(*one),
            (images, boxes, uniform),
            fn_output_signature=tf.uint8,
        )

    return views
