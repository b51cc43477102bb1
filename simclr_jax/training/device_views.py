"""Views computed on the accelerator, as a part of the train step."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.data.views import resident
from simclr_jax.data.views.composition import Composition
from simclr_jax.training.objectives import NUM_VIEWS, Batch


def make_composition(config: config_dict.ConfigDict) -> Composition:
    """The operations of the config's views, with their settings."""
    operations = tuple(config.augment.operations)
    settings = {name: dict(config.augment[name]) for name in operations}
    settings.get("crop", {}).pop("antialias", None)  # of whole images too
    antialias = config.augment.crop.antialias
    return Composition(operations, settings, config.image_size, antialias)


class DeviceViews:
    """The first part of a train step: views from its input; see `from_config`."""

    def __init__(
        self, config: config_dict.ConfigDict, mesh: Mesh, *, num_views: int = NUM_VIEWS
    ) -> None:
        """Takes a valid config, the mesh and the number of views of an image."""
        self.placement = config.augment.placement
        self._composition = make_composition(config)
        self._batch_size = config.batch.batch_size
        self._num_views = num_views
        batch = parallel.batch_sharding(mesh)
        # Of the step's input: a batch split over devices, or the dataset replicated.
        self.input_sharding: NamedSharding = batch
        # Augment per micro-batch too: augmented views are float32, 4 times the uint8.
        parts = self._batch_size // (config.batch.micro_batch_size or self._batch_size)
        self._views = resident.in_parts(self._composition, parts)
        if self.placement == "accelerator":
            self.input_sharding = parallel.replicated(mesh)
            self._batches = resident.ResidentBatches(
                composition=self._composition,
                seed=config.seed,
                batch_size=self._batch_size,
                num_views=num_views,
                sharding=batch,
                parts=parts,
            )

    @jax.named_scope("views")
    def __call__(self, inputs: Batch, step: jax.Array) -> Batch:
        """The batch of views that the model sees at a step.

        Args:
          inputs: `images` and `labels`: of a batch of crops [B, V, S, S, 3] with their
            `draws` [B, V, D], or of the dataset [N, H, W, 3].
          step: int32 scalar.

        Returns:
          `images` uint8 [B, V, S, S, 3] and `labels` int32 [B].
        """
        if self.placement == "accelerator":
            return self._batches(inputs, step)
        images = self._views(inputs["images"], inputs["draws"], None)
        return {"images": images, "labels": inputs["labels"]}

    def input_shapes(
        self, dataset_shape: tuple[int, int, int] | None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the step's input.

        Args:
          dataset_shape: (N, H, W), where the accelerator holds the dataset.
        """
        size = self._composition.image_size
        if self.placement == "accelerator":
            assert dataset_shape is not None
            return {
                "images": jax.ShapeDtypeStruct((*dataset_shape, 3), jnp.uint8),
                "labels": jax.ShapeDtypeStruct(dataset_shape[:1], jnp.int32),
            }
        batch = (self._batch_size, self._num_views)
        draws = self._composition.num_draws
        return {
            "images": jax.ShapeDtypeStruct((*batch, size, size, 3), jnp.uint8),
            "labels": jax.ShapeDtypeStruct(batch[:1], jnp.int32),
            "draws": jax.ShapeDtypeStruct((*batch, draws), jnp.float32),
        }


def from_config(
    config: config_dict.ConfigDict, mesh: Mesh, num_views: int = NUM_VIEWS
) -> DeviceViews | None:
    """How the train step computes views; None where the host does."""
    if config.augment.placement == "host":
        return None
    return DeviceViews(config, mesh, num_views=num_views)
