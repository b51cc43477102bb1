"""Views of single images, on the host, on the device, or where training makes them."""

import dataclasses
import functools
import importlib
from collections.abc import Callable

import jax
import numpy as np

from simclr_jax.data import optional
from simclr_jax.data.views import device, host_form
from simclr_jax.data.views.composition import Composition

# (image uint8 [H, W, 3], boxes int32 [n, 4], draws float32 [n, D]) -> uint8
# [n, S, S, 3]
Form = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class NotHere(Exception):
    """A form that this machine or a composition does not have; says why."""


@dataclasses.dataclass(frozen=True)
class Forms:
    """Where views can be made.

    Attributes:
      placement: `augment.placement`, where training makes them.
      host_views: `augment.host_views`.
    """

    placement: str
    host_views: str

    def training(self, composition: Composition) -> Form:
        """As a training makes them; raises NotHere."""
        if self.placement == "host":
            return self.host(composition)
        on_device = self.device(composition)
        if self.placement == "accelerator" or "crop" not in composition.operations:
            return on_device
        crop = self.host(composition.crop_alone())
        rest = self.device(composition.without("crop"))

        def views(
            image: np.ndarray, boxes: np.ndarray, uniform: np.ndarray
        ) -> np.ndarray:
            # The crop takes no draws.
            crops = crop(image, boxes, uniform[:, :0])
            whole = np.array([[0, 0, *crops.shape[1:3]]], np.int32)
            each = zip(crops, uniform, strict=True)
            return np.concatenate([rest(one, whole, u[None]) for one, u in each])

        return views

    def host(self, composition: Composition) -> Form:
        """On the host, in the form that the config asks for; raises NotHere."""
        if self.host_views == "graph":
            why_not: str | None = "config.augment.host_views='graph' asks for it"
        else:
            why_not = host_form.unavailable()
        if why_not is None:
            # Imported here, since it needs Numba.
            host_program = importlib.import_module("simclr_jax.data.views.host_program")
            missing = host_program.not_compiled(composition)
            if not missing:
                compiled = host_program.compose(composition)
                return functools.partial(_compiled, compiled, composition.image_size)
        if not optional.is_installed("tensorflow"):
            why_not = why_not or f"{missing[0]!r} has no compiled form"
            raise NotHere(f"TensorFlow is not installed, and {why_not}")
        # Imported here, since it needs TensorFlow.
        host = importlib.import_module("simclr_jax.data.views.host")
        tf = importlib.import_module("simclr_jax.data.tf_cpu").tf
        views = host.compose(composition, compiled=why_not is None)
        # The compiled operations run in graphs alone.
        in_graph = tf.function(
            views,
            input_signature=[
                tf.TensorSpec([None, None, 3], tf.uint8),
                tf.TensorSpec([None, 4], tf.int32),
                tf.TensorSpec([None, composition.num_draws], tf.float32),
            ],
            autograph=False,
        )
        return lambda image, boxes, uniform: in_graph(image, boxes, uniform).numpy()

    def device(self, composition: Composition) -> Form:
        """On the default device of JAX; raises NotHere."""
        for name in composition.operations:
            if name != "crop" and name not in device.OPERATIONS:
                raise NotHere(f"{name!r} has no form for devices")
        return functools.partial(_on_device, composition)


def alone(composition: Composition, name: str) -> Composition:
    """One operation of a composition, applied to every view."""
    settings = dict(composition.settings[name])
    if "probability" in settings:
        settings["probability"] = 1.0
    return dataclasses.replace(
        composition, operations=(name,), settings={name: settings}
    )


def _compiled(
    views: Callable[..., None],
    size: int,
    image: np.ndarray,
    boxes: np.ndarray,
    uniform: np.ndarray,
) -> np.ndarray:
    result = np.empty((1, len(boxes), size, size, 3), np.uint8)
    views(image[None], boxes[None], uniform[None], result)
    return result[0]


@functools.lru_cache(maxsize=64)
def _jitted(composition: Composition) -> Callable[..., jax.Array]:
    return jax.jit(device.compose(composition))


def _on_device(
    composition: Composition, image: np.ndarray, boxes: np.ndarray, uniform: np.ndarray
) -> np.ndarray:
    # One view at a time: a large photograph takes 12 bytes a pixel, and several times.
    views = _jitted(composition)
    own_size = (composition.image_size,) * 2
    # Whole images of the size of a view are not resized; see `device.compose`.
    sized = image.shape[:2] == own_size and "crop" not in composition.operations
    return np.concatenate(
        [
            views(image[None], u[None], None if sized else box[None])
            for box, u in zip(boxes, uniform, strict=True)
        ]
    )
