"""Parts of a run's page: pairs are those of training, and failures stay apart."""

import shutil

import numpy as np
import pytest
from pretraining import pretrain
from report_samples import HOSTILE, Page, render

from simclr_jax.configs import smoke
from simclr_jax.errors import CheckpointDamaged, CheckpointNotFound
from simclr_jax.report import newest, pairs, representation, sample
from simclr_jax.training import input_pipeline, step_views


def make_config(tmp_path, *, num_images=20, labels=True, **changes):
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(0, 256, (num_images, 10, 12, 3), np.uint8)}
    if labels:
        arrays["labels"] = np.arange(num_images) % 3
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", **arrays)
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": 8,
            "batch.batch_size": 8,
            "schedule.train_steps": 6,
            # Nothing that takes long to compile.
            "augment.operations": ("crop", "flip"),
            "data.dataset": f"npz:{tmp_path}/{{split}}.npz",
            **changes,
        }
    )
    return config


def shown_views(section):
    """(the names of the images, the data URIs of their views)."""
    found = section.data["pairs"]
    return [pair["name"] for pair in found], [pair["views"] for pair in found]


@pytest.mark.parametrize(("step", "num_images"), [(0, 6), (4, 4), (4, 6)])
def test_pairs_are_those_of_a_step_of_training(tmp_path, step, num_images):
    config = make_config(tmp_path)
    section = pairs.section(str(tmp_path), config, step=step, num_images=num_images)
    source = input_pipeline.open_source(config, "train")
    batch = next(input_pipeline.local_batches(config, source, start_step=step))
    _, views = shown_views(section)
    assert len(views) == num_images
    expected = [
        [pairs._uri(view) for view in image] for image in batch["images"][:num_images]
    ]
    assert views == expected
    assert section.data["step"] == step + 1
    page = render(section)
    assert page.count("<img") == 3 * num_images
    for number, pair in enumerate(section.data["pairs"]):
        assert pair["class"] == str(batch["labels"][number])


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["host_crop", "accelerator"])
def test_pairs_of_the_accelerator_are_those_of_its_train_step(tmp_path, placement):
    import jax

    from simclr_jax import parallel
    from simclr_jax.training import device_views

    config = make_config(
        tmp_path,
        **{
            "augment.placement": placement,
            "augment.operations": ("crop", "flip", "color_jitter", "blur"),
        },
    )
    source = input_pipeline.open_source(config, "train")
    made = step_views.of_step(config, source, num_images=3, step=2)
    mesh = parallel.create_mesh(jax.devices()[:1])
    views = device_views.from_config(config, mesh)
    assert views is not None
    held = input_pipeline.hold_in_memory(config, source)
    inputs = next(input_pipeline.global_batches(config, held, 2, mesh))
    batch = jax.jit(views)(inputs, np.int32(2))
    difference = np.abs(
        made.images.astype(int) - np.asarray(batch["images"])[:3].astype(int)
    )
    assert difference.max() <= 1  # of rounding


def test_fine_tuning_has_no_pairs(tmp_path):
    config = make_config(tmp_path).unlock()
    config.finetune = {"layer": 0}
    made = representation._made("a", "b", lambda: pairs.section("", config))
    assert made.template == "missing.html"
    assert "single views" in made.data["reason"]


def make_checkpoints(tmp_path, steps):
    for step in steps:
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)


def test_checkpoints_that_vanish_or_are_damaged_are_passed_over(tmp_path, monkeypatch):
    make_checkpoints(tmp_path, (10, 20))

    def load(workdir, *, step):
        if step == 20:  # meanwhile the run goes on
            shutil.rmtree(tmp_path / "checkpoints" / "20")
            make_checkpoints(tmp_path, (30, 40))
            raise CheckpointNotFound("step 20 is gone")
        if step == 40:
            raise CheckpointDamaged("step 40 is damaged")
        return step

    monkeypatch.setattr(newest.encoders, "load", load)
    assert newest.load(str(tmp_path)) == 30


def test_the_first_error_is_said_where_no_checkpoint_can_be_read(tmp_path, monkeypatch):
    make_checkpoints(tmp_path, (10, 20))

    def load(workdir, *, step):
        raise CheckpointDamaged(f"step {step} is damaged")

    monkeypatch.setattr(newest.encoders, "load", load)
    with pytest.raises(CheckpointDamaged, match="step 20"):
        newest.load(str(tmp_path))


class MeanColour:
    """An encoder whose h is the mean colour."""

    step = 3

    def encode(self, images, *, batch_size):
        assert len(images) == batch_size
        return np.stack([image.mean(axis=(0, 1)) for image in images]).astype("f4")


@pytest.fixture
def mean_colour(monkeypatch):
    monkeypatch.setattr(newest, "load", lambda workdir: MeanColour())


@pytest.mark.parametrize("num_images", [1, 129, 300])
def test_a_sample_keeps_images_and_h_together(
    tmp_path, mean_colour, monkeypatch, num_images
):
    config = make_config(tmp_path, num_images=300)
    taken = sample.take(str(tmp_path), config, num_images=num_images, seed=1)
    again = sample.take(str(tmp_path), config, num_images=num_images, seed=1)
    assert taken.image_names == again.image_names
    assert len(taken.h) == num_images == len({*taken.image_names})
    assert taken.split == "test"
    assert taken.note == ""
    assert taken.step == 3
    images = np.load(tmp_path / "test.npz")["images"]
    source = input_pipeline.open_source(config, "test")
    number = {source.describe(i): i for i in range(300)}
    for row, name in enumerate(taken.image_names):
        image = images[number[name]]
        np.testing.assert_allclose(taken.h[row], image.mean(axis=(0, 1)), rtol=1e-6)
        assert taken.labels[row] == number[name] % 3
        centre = image[:, 1:11].mean(axis=(0, 1))
        np.testing.assert_allclose(
            taken.thumbnails[row].mean(axis=(0, 1)), centre, atol=5
        )


def test_training_images_stand_in_where_there_are_no_others(tmp_path, mean_colour):
    config = make_config(tmp_path, labels=False)
    (tmp_path / "test.npz").unlink()
    taken = sample.take(str(tmp_path), config, num_images=9, seed=0)
    assert taken.split == "train"
    assert "training images" in taken.note
    assert taken.class_names is None
    assert not taken.has_labels


def test_one_failure_does_not_take_the_other_parts(tmp_path):
    config = make_config(tmp_path)
    made = representation.sections(str(tmp_path / "run"), config.to_dict())
    assert [section.name for section in made] == [
        "pairs",
        "neighbours",
        "map",
        "classes",
    ]
    assert made[0].template == "pairs.html"
    for section in made[1:]:
        assert section.template == "missing.html"
        assert "holds no checkpoint" in Page(render(section)).text
    (tmp_path / "train.npz").unlink()
    (first, *_) = representation.sections(str(tmp_path / "run"), config.to_dict())
    assert first.template == "missing.html"
    assert "train.npz" in first.data["reason"]


def test_bad_images_are_left_out_of_a_sample(tmp_path, mean_colour):
    from PIL import Image

    folder = tmp_path / "photos"
    for split, name in ((s, n) for s in ("train", "test") for n in (HOSTILE[5], "b")):
        (folder / split / name).mkdir(parents=True)
        for i in range(30):
            image = np.full((9, 7, 3), 40 * i % 256, np.uint8)
            Image.fromarray(image).save(folder / split / name / f"{i}.png")
    file = folder / "test" / "b" / "3.png"
    file.write_bytes(file.read_bytes()[:50])
    config = make_config(tmp_path)
    config.data.dataset = f"folder:{folder}"
    taken = sample.take(str(tmp_path), config, num_images=60, seed=0)
    assert taken.num_bad == 1
    assert len(taken.h) == len(taken.image_names) == 59
    assert "\u202e" not in "".join(taken.class_names)
    assert {taken.class_of(i) for i in range(59)} == {*taken.class_names}


@pytest.mark.slow
@pytest.mark.parametrize("labels", [True, False])
def test_a_real_run_has_all_parts_that_its_data_allow(tmp_path, labels):
    config = make_config(tmp_path, num_images=40, labels=labels)
    config.evaluation.knn_k = (5,)
    workdir = tmp_path / "run"
    pretrain(config, str(workdir))
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    made = representation.sections(str(workdir), config.to_dict(), num_images=30)
    templates = [section.template for section in made]
    classes = "classes.html" if labels else "missing.html"
    assert templates == ["pairs.html", "neighbours.html", "embedding_map.html", classes]
    for section in made:
        render(section)
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before
