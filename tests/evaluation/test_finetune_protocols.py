"""When a fine-tuning of `evaluate` that was interrupted resumes, and when it is not."""

import types

import numpy as np
import pytest

from simclr_jax import paths
from simclr_jax.configs import smoke
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.evaluation import finetune_protocols
from simclr_jax.runs import dataset_record, directory

IMAGES = np.zeros((6, 4, 4, 3), np.uint8)


def make_job(num_images=6, **settings):
    config = smoke.get_config()
    config.update_from_flattened_dict(settings)
    source = ArraySource(IMAGES[:num_images], name="images")
    return types.SimpleNamespace(config=config, source=source)


@pytest.fixture
def folder(tmp_path):
    folder = paths.as_path(tmp_path / "finetune")
    folder.mkdir()
    job = make_job()
    directory.write_config(str(folder), job.config)
    dataset_record.write(str(folder), job.source.listing())
    return folder


@pytest.mark.parametrize(
    ("job", "stays"),
    [
        (make_job(), True),
        (make_job(**{"log.every_steps": 3}), True),
        (make_job(seed=1), False),
        (make_job(num_images=5), False),
    ],
    ids=["same", "operational", "setting", "images"],
)
def test_a_training_of_other_settings_or_images_is_removed(folder, job, stays):
    finetune_protocols._remove_if_changed(folder, job)
    assert folder.exists() is stays


def test_a_folder_of_an_earlier_version_has_no_record(folder):
    (folder / dataset_record.FILE_NAME).unlink()
    finetune_protocols._remove_if_changed(folder, make_job(num_images=5))
    assert folder.exists()
