"""Some views of a step of training, computed where training computes them."""

import dataclasses

import jax
import numpy as np
from ml_collections import config_dict

from simclr_jax.data import pipeline
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import bad_records, pixels
from simclr_jax.data.sources.base import Source
from simclr_jax.data.step_sampler import StepSampler, slice_of_host
from simclr_jax.data.views import resident
from simclr_jax.training import input_pipeline
from simclr_jax.training.device_views import make_composition
from simclr_jax.training.objectives import NUM_VIEWS


@dataclasses.dataclass(frozen=True)
class StepViews:
    """The first images of a step's batch and their views.

    Attributes:
      indices: int64 [n], of the images in their source.
      images: uint8 [n, V, S, S, 3], the views. Where an image cannot be read they are
        those of the one that training takes in its place.
    """

    indices: np.ndarray
    images: np.ndarray


def of_step(
    config: config_dict.ConfigDict,
    source: Source,
    *,
    num_images: int,
    step: int = 0,
    batch_size: int | None = None,
    num_views: int = NUM_VIEWS,
    on_bad_record: bad_records.OnBadRecord = bad_records.refuse,
) -> StepViews:
    """The views of the first images of a step's batch; reads hardly more than these.

    Args:
      config: valid, of a pretraining.
      source: its training images, in memory or not.
      num_images: n, at most the batch size.
      step: from 0.
      batch_size: images in the batch; `config.batch.batch_size` where None.
      num_views: V.
      on_bad_record: as in `pipeline.train_batches`.

    Raises:
      ConfigError: this machine cannot compute views in the config's form.
      DataError: an image cannot be read, or there are fewer than the batch has.
    """
    batch_size = batch_size or config.batch.batch_size
    # The first of the hosts that would share the batch in parts of `num_images`.
    size = next(n for n in range(num_images, batch_size + 1) if batch_size % n == 0)
    sampler = StepSampler(
        source,
        make_composition(config),
        config.seed,
        batch_size,
        config.data.block_size,
        num_views,
        slice_of_host(batch_size, 0, batch_size // size),
    )
    sampler.check()
    views = (
        _on_device(sampler, step)
        if config.augment.placement == "accelerator"
        else _by_pipeline(config, sampler, step, on_bad_record)
    )
    return StepViews(sampler.indices(step)[0][:num_images], views[:num_images])


def _by_pipeline(
    config: config_dict.ConfigDict,
    sampler: StepSampler,
    step: int,
    on_bad_record: bad_records.OnBadRecord,
) -> np.ndarray:
    """Views of the host's pipeline; behind `host_crop`, the device does the rest."""
    host_crop = config.augment.placement == "host_crop"
    batch = next(
        pipeline.train_batches(
            sampler.source,
            sampler.composition,
            seed=sampler.seed,
            batch_size=sampler.batch_size,
            num_views=sampler.num_views,
            start_step=step,
            stop_step=step + 1,
            num_hosts=sampler.batch_size // sampler.size,
            host_crop=host_crop,
            block_size=sampler.block_size,
            compiled=input_pipeline.use_compiled_views(config),
            on_bad_record=on_bad_record,
            buffers=input_pipeline.make_buffers(
                config, batch_size=sampler.size, num_views=sampler.num_views
            ),
        )
    )
    if not host_crop:
        return batch["images"]
    views = jax.jit(resident.in_parts(sampler.composition, 1))
    return np.asarray(views(batch["images"], batch["draws"], None))


def _on_device(sampler: StepSampler, step: int) -> np.ndarray:
    """Views of whole images, which training takes from the device's memory."""
    indices, boxes, uniform = sampler(step)
    images, _ = pixels.read(sampler.source, indices)
    if sampler.source.encoded:
        shapes = np.array([image.shape[:2] for image in images])
        boxes = sampler.composition.boxes_of_files(boxes, shapes)
    views = jax.jit(resident.in_parts(sampler.composition, 1))
    return np.asarray(views(np.stack([*images]), uniform, boxes))


def evaluation_preprocessing(config: config_dict.ConfigDict) -> Preprocessing:
    """That of the config's evaluations."""
    return Preprocessing(
        image_size=config.image_size,
        crop_proportion=config.evaluation.crop_proportion,
        resize=config.evaluation.resize,
    )
