"""The picture of a run's first views, and what watches over a run hands to writers."""

import event_files
import jax
import numpy as np
import pytest

from simclr_jax import parallel
from simclr_jax.config import rules
from simclr_jax.configs import smoke
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.runs.writers import Writers, pictures
from simclr_jax.training import input_pipeline, shown_views, watching

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 10, 12, 3), np.uint8)
SOURCE = ArraySource(IMAGES, np.arange(40), name="arrays")


def make_config(placement, batch_size):
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": 8,
            "batch.batch_size": batch_size,
            "schedule.train_steps": 6,
            "augment.operations": ("crop", "flip"),
            "augment.placement": placement,
        }
    )
    rules.validate(config)
    return config


@pytest.mark.parametrize(
    ("placement", "batch_size", "num_views"),
    [("host", 20, 2), ("host_crop", 8, 2), ("accelerator", 20, 2), ("host", 8, 1)],
)
def test_the_picture_has_the_views_of_the_first_step(
    placement, batch_size, num_views, tmp_path
):
    config = make_config(placement, batch_size)
    mesh = parallel.create_mesh(jax.devices()[:1])
    batches = input_pipeline.global_batches(config, SOURCE, 0, mesh, num_views)
    batch = next(batches)
    before = jax.tree.map(np.asarray, batch)
    writers = Writers(("tensorboard",), tmp_path, tmp_path, resume_step=0)
    shown_views.write(config, writers, num_views, batch)
    writers.close()
    ((step, value),) = event_files.values_of(tmp_path, "views")
    assert step == 0
    config.augment.placement = "host"
    expected = next(
        input_pipeline.local_batches(config, SOURCE, 0, num_views=num_views)
    )["images"][:16]
    found = shown_views.of_batch(make_config(placement, batch_size), num_views, batch)
    np.testing.assert_array_equal(found, expected)
    grid = pictures.grid(expected.reshape(-1, 8, 8, 3), 8, gap=2)
    assert (value.image.height, value.image.width) == grid.shape[:2]
    # The batch is that of the step, as it was.
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(batch), before)


def test_no_picture_is_no_end(caplog, tmp_path):
    config = make_config("host", 8)
    shown_views.write(config, Writers((), tmp_path, tmp_path, resume_step=0), 2, {})
    assert caplog.text.count("No picture of the first views") == 1


@pytest.mark.parametrize(
    ("done", "writers", "expected"),
    [(4, ("tensorboard",), False), (6, (), False), (6, ("wandb",), True)],
)
def test_points_are_for_writers_after_the_last_step(done, writers, expected):
    config = make_config("host", 8)
    config.log.writers, config.evaluation.every_steps = writers, 2
    held_out = watching.HeldOut(
        lambda state: {"held_out_knn": 0.5}, "knn", "a", lambda state: state
    )
    measure = watching.Watch(held_out, config, None).measurement(done, "state")
    assert measure.figures() == {"held_out_knn": 0.5}
    assert (measure.points is not None) == expected
    if expected:
        assert measure.points() == "state"
