"""Held-out figures of a pretraining on the way, and the checkpoint of the best one."""

import dataclasses
import types

import event_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pretraining import pretrain

from simclr_jax import load, parallel
from simclr_jax.configs import base
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.errors import CheckpointNotFound, ConfigError, DataError
from simclr_jax.evaluation import loop as evaluation_loop
from simclr_jax.evaluation import watching
from simclr_jax.runs import best, checkpoints
from simclr_jax.runs.metrics_writer import FILE_NAME, MetricsWriter, read_metrics
from simclr_jax.runs.writers import Points, pictures
from simclr_jax.training import loop, reporter, step_clock
from simclr_jax.training import watching as training_watching

SIZE, CLASSES, IMAGES = 8, 4, 32
FIGURES = ("held_out_knn", "held_out_probe")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Figures do not depend on devices, and one is fast."""
    create_mesh = parallel.create_mesh
    monkeypatch.setattr(
        parallel, "create_mesh", lambda *_: create_mesh(jax.devices()[:1])
    )


@pytest.fixture
def data(tmp_path):
    """Noisy images whose class is their brightness."""
    labels = np.arange(IMAGES) % CLASSES
    for seed, split in enumerate(("train", "val", "test")):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 120, (IMAGES, SIZE, SIZE, 3))
        images = (images + 40 * labels[:, None, None, None]).astype(np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    np.savez(tmp_path / "unlabelled.npz", images=images)
    return tmp_path


def make_config(data, **changes):
    config = base.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": SIZE,
            "data.dataset": f"npz:{data}/{{split}}.npz",
            "batch.batch_size": 16,
            "encoder.depth": 10,
            "encoder.width": 0.0625,
            "encoder.compute_dtype": "float32",
            "head.num_layers": 2,
            "optimizer.name": "adamw",
            "optimizer.scaling": "none",
            "optimizer.learning_rate": 0.01,
            "schedule.train_steps": 5,
            "schedule.warmup_steps": 0,
            "evaluation.test_split": "test",
            "evaluation.batch_size": 16,
            "evaluation.knn_k": (5, 1),
            "log.writers": (),
            "log.every_steps": 4,
            "checkpoint.every_steps": 100,
            "checkpoint.keep_last": 1,
            **changes,
        }
    )
    return config


def figures_of(workdir):
    """Figures by step."""
    return {
        record["step"]: tuple(record[name] for name in FIGURES)
        for record in read_metrics(workdir / FILE_NAME)
        if FIGURES[0] in record
    }


def leaves(state):
    return jax.tree.leaves(jax.device_get(state))


def scripted(monkeypatch, values):
    """kNN figures by step, in place of those of the images."""

    def measure(self, state):
        return {"held_out_knn": values[int(state.step)], "held_out_probe": 0.5}

    monkeypatch.setattr(watching._Measurement, "__call__", measure)


def steps_of(workdir):
    folder = workdir / checkpoints.FOLDER
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.slow
def test_a_watched_run_is_the_same_run_and_resumes_with_the_same_figures(
    data, tmp_path, caplog
):
    plain = pretrain(make_config(data), str(tmp_path / "plain"))
    config = make_config(data, **{"evaluation.every_steps": 2})
    with caplog.at_level("INFO", logger="simclr_jax"):
        state = pretrain(config, str(tmp_path / "run"))
    for got, expected in zip(leaves(state), leaves(plain), strict=True):
        np.testing.assert_array_equal(got, expected)
    figures = figures_of(tmp_path / "run")
    assert list(figures) == [2, 4, 5]
    assert "Held out: knn " in caplog.text
    assert "% of the time since the start" in caplog.text
    records = read_metrics(tmp_path / "run" / FILE_NAME)
    assert [r["step"] for r in records] == [1, 2, 4, 5]
    for record in records[1:]:
        assert record["held_out_secs"] > 0
        assert 0 < record["held_out_time_share"] < 1
        assert record["loss"] > 0
    # The figures of the last step are those that `evaluate` finds.
    results = evaluation_loop.evaluate(str(tmp_path / "run"), ["knn", "classifier"])
    found = [results[name]["pretrained"].value for name in ("knn", "classifier")]
    assert figures[5] == tuple(found)

    pretrain(config, str(tmp_path / "again"), last_step=3)
    resumed = pretrain(config, str(tmp_path / "again"))
    assert figures_of(tmp_path / "again") == figures
    for got, expected in zip(leaves(resumed), leaves(plain), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
def test_writers_change_no_bit_and_get_pictures_and_points(data, tmp_path):
    settings = {"evaluation.every_steps": 3}
    plain = pretrain(make_config(data, **settings), str(tmp_path / "plain"))
    run = tmp_path / "run"
    config = make_config(data, **settings, **{"log.writers": ("tensorboard",)})
    pretrain(config, str(run), last_step=3)
    assert not (run / "projector").exists()
    state = pretrain(config, str(run))
    for got, expected in zip(leaves(state), leaves(plain), strict=True):
        np.testing.assert_array_equal(got, expected)
    # One picture, at the start of the run and not of the second start.
    assert [step for step, _ in event_files.values_of(run, "views")] == [0]
    knn = [step for step, _ in event_files.values_of(run, "held_out_knn")]
    assert knn == [3, 5]
    assert len(event_files.values_of(run, "_hparams_/session_start_info")) == 2
    # The points are h of the test images, as `load` has it.
    with np.load(data / "test.npz") as held_out:
        images, classes = held_out["images"], held_out["labels"]
    encoder = load(str(run))
    h = encoder.encode(images)
    vectors = np.loadtxt(run / "projector" / "tensors.tsv", delimiter="\t")
    np.testing.assert_allclose(vectors, h, rtol=1e-3, atol=1e-4)
    header, *lines = (run / "projector" / "metadata.tsv").read_text().splitlines()
    assert header == "label\timage"
    assert lines == [f"{label}\t{n}" for n, label in enumerate(classes)]
    sprite = np.asarray(Image.open(run / "projector" / "sprite.png"))
    (first,) = encoder.preprocessing(images[:1])
    np.testing.assert_array_equal(sprite[:SIZE, :SIZE], np.rint(first * 255))


@pytest.mark.slow
def test_the_best_checkpoint_stays_through_a_kill(data, tmp_path, monkeypatch):
    # The first of equals, between regular saves.
    scripted(monkeypatch, {1: 0.2, 2: 0.6, 3: 0.4, 4: 0.6, 5: 0.3})
    settings = {"evaluation.every_steps": 1, "checkpoint.keep_best": True}
    config = make_config(data, **settings)
    run = tmp_path / "run"
    pretrain(config, str(run), last_step=3)
    assert steps_of(run) == [2, 3]
    # As a kill in step 4 leaves it: what was measured since step 3 is not saved.
    state = pretrain(config, str(run))
    assert steps_of(run) == [2, 5]
    description = checkpoints.read_description(
        checkpoints.open_for_reading(str(run), 2)[0]
    )
    assert description[best.HELD_OUT]["value"] == 0.6
    assert load(str(run), step=2).step == 2
    results = evaluation_loop.evaluate(str(run), ["knn"], step=2)
    assert 0 <= results["knn"]["pretrained"].value <= 1
    # The newest stays the final state.
    newest = load(str(run))
    assert newest.step == 5
    for got, expected in zip(
        leaves(newest.variables["params"]),
        leaves(state.params["encoder"]),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)
    # Without the key it is a checkpoint like the others.
    longer = {"schedule.train_steps": 6, "checkpoint.keep_best": False}
    scripted(monkeypatch, {6: 0.1})
    pretrain(make_config(data, **settings | longer), str(run), allow_config_change=True)
    assert steps_of(run) == [6]
    with pytest.raises(CheckpointNotFound):
        load(str(run), step=2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """What a checkpoint needs of a state."""

    step: jax.Array
    params: dict
    batch_stats: dict


def make_state(step):
    kernel = jnp.full((2, 2), step, jnp.float32)
    parts = {"encoder": {"kernel": kernel}, "probe": {"kernel": kernel}}
    return State(jnp.int32(step), parts, {"encoder": {"mean": kernel[0]}})


def train(workdir, values, *, first=1, finite=True, **settings):
    """The loop's last part, with figures by step; returns the steps that were saved."""
    config = base.get_config()
    config.evaluation.every_steps, config.schedule.train_steps = 1, 100
    config.checkpoint.keep_best = settings.get("keep_best", True)
    store = checkpoints.Checkpoints(
        str(workdir),
        keep_last=1,
        keep_every_steps=None,
        **{"keep_best": True} | settings,
    )
    held_out = training_watching.HeldOut(
        lambda state: {"held_out_knn": values[int(state.step)]}, "knn", "a"
    )
    watch = training_watching.Watch(held_out, config, store)
    saved = []
    for done in range(first, max(values) + 1):
        state = make_state(done)
        measure = watch.measurement(done, state)
        if measure is not None and finite:
            measure.figures()
        if done % 5 == 0 or watch.is_best():
            store.save(done, state, {"config_hash": "0"} | watch.describe())
            saved.append(done)
    store.close()
    return saved


def test_the_best_is_saved_and_stays(tmp_path):
    figures = {1: 0.2, 2: 0.6, 3: 0.4, 4: 0.6, 5: 0.5}
    # Step 4 has no better one: the first of equals.
    assert train(tmp_path, figures) == [1, 2, 5]
    assert steps_of(tmp_path) == [2, 5]
    # Another process begins where the newest ends, and knows the best.
    figures |= {6: 0.6, 7: 0.1, 8: 0.3, 9: 0.2, 10: 0.1, 11: 0.2}
    assert train(tmp_path, figures, first=6) == [10]
    assert steps_of(tmp_path) == [2, 10]
    assert train(tmp_path, figures | {12: 0.7}, first=11) == [12]
    assert steps_of(tmp_path) == [12]
    _, step = checkpoints.open_for_reading(str(tmp_path), 12)
    assert step == 12


def test_without_keep_best_figures_save_nothing(tmp_path):
    assert train(tmp_path, {3: 0.2, 4: 0.9, 5: 0.1}, first=3, keep_best=False) == [5]
    assert steps_of(tmp_path) == [5]


def test_a_step_that_was_not_measured_is_not_the_best(tmp_path):
    assert train(tmp_path, {3: 0.2, 4: 0.9, 5: 0.1}, first=3, finite=False) == [5]
    folder, _ = checkpoints.open_for_reading(str(tmp_path), 5)
    assert best.HELD_OUT not in checkpoints.read_description(folder)


def test_a_measurement_is_logged_with_its_cost_and_not_as_time_of_steps(
    tmp_path, monkeypatch
):
    now = [100.0]
    for module in (reporter, step_clock):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    config = base.get_config()
    config.log.every_steps, config.evaluation.every_steps = 10, 2
    config.schedule.train_steps, config.batch.batch_size = 50, 8
    writer = MetricsWriter(str(tmp_path), resume_step=0)
    guard = types.SimpleNamespace(
        check=lambda done, metrics: {"loss": 1.0, "learning_rate": 0.1}
    )
    found = reporter.Reporter(
        config, writer, start_step=0, chance=None, health=None, guard=guard
    )

    def figures():
        now[0] += 30
        return {"held_out_knn": 0.25, "held_out_probe": 0.5}

    def batches():
        while True:
            now[0] += 5
            yield {}

    measure, inputs = training_watching.Measurement(figures), batches()
    for done in range(1, 5):
        found.next_batch(inputs)
        metrics = {"learning_rate": jnp.float32(0.1)}
        found.report(done, metrics, measure if done % 2 == 0 else None)
    writer.close()
    records = read_metrics(tmp_path / FILE_NAME)
    assert [r["step"] for r in records] == [1, 2, 4]
    assert "held_out_knn" not in records[0]
    assert [r["held_out_secs"] for r in records[1:]] == [30, 30]
    assert records[1]["held_out_time_share"] == pytest.approx(30 / 40)
    assert records[2]["held_out_time_share"] == pytest.approx(60 / 80)
    # 8 images in 5 s, whatever the measurement took.
    assert [r["images_per_sec"] for r in records] == pytest.approx([1.6, 1.6, 1.6])


def described(**values):
    return {
        step: {} if value is None else {best.HELD_OUT: {"value": value, "of": of}}
        for step, (value, of) in ((int(k[1:]), v) for k, v in values.items())
    }


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, None),
        ({"s3": (None, "")}, None),
        ({"s3": (0.0, "a")}, 3),
        ({"s3": (0.5, "a"), "s4": (None, ""), "s9": (0.5, "a")}, 3),
        ({"s10": (0.7, "a"), "s9": (0.5, "a")}, 10),
        # Figures of something else do not compare.
        ({"s3": (0.9, "a"), "s5": (0.2, "b"), "s7": (0.1, "b")}, 5),
    ],
)
def test_the_best_of_what_is_there(found, expected):
    descriptions = described(**found)
    known = best.Best()
    known.find(descriptions, descriptions.__getitem__)
    assert known.step == expected


def test_a_damaged_description_is_passed_over():
    def describe(step):
        if step == 4:
            raise checkpoints.CheckpointError("damaged")
        return {best.HELD_OUT: {"value": 0.1 * step, "of": "a"}}

    known = best.Best()
    known.find([3, 4, 2], describe)
    assert (known.step, known.of) == (3, "a")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.split": "test"}, "test_split='test': must not be config.data.split"),
        (
            {"evaluation.held_out_split": "train"},
            "held_out_split='train': must not be config.data.split",
        ),
        ({"evaluation.held_out_split": "dev"}, "every_steps=2: needs a labelled .*dev"),
        ({"evaluation.test_split": "unlabelled"}, "every_steps=2: .*has no labels"),
        ({"evaluation.train_split": "unlabelled"}, "every_steps=2: .*has no labels"),
        ({"evaluation.knn_k": (33,)}, r"knn_k=\(33,\): must not exceed the 32 images"),
        (
            {"evaluation.bank_images": 8, "evaluation.knn_k": (9,)},
            r"knn_k=\(9,\): must not exceed the 8 images of 25 % of",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(data, changes, words):
    config = make_config(data, **{"evaluation.every_steps": 2}, **changes)
    with pytest.raises((ConfigError, DataError), match=words):
        watching.watched(loop.pretraining_job(config))


def test_names_of_folders_can_be_written(tmp_path):
    source = ArraySource(np.zeros((3, 2, 2, 3), np.uint8), np.arange(3), name="a")
    source.class_names = ["cach\udce9", "a\x1b[2J\tb", "火烈鸟"]
    labels = watching._label_names(source, np.array([2, -1, 0, 1]))
    images = np.zeros((4, 2, 2, 3), np.uint8)
    points = Points(np.zeros((4, 2)), labels, [*range(4)], images)
    written = pictures.write_projector(tmp_path, points) / "metadata.tsv"
    rows = written.read_text(encoding="utf-8").splitlines()[1:]
    assert rows == ["火烈鸟\t0", "\t1", "cach\\udce9\t2", "a\\x1b[2J\\tb\t3"]


def test_the_best_needs_figures(data):
    config = make_config(data, **{"checkpoint.keep_best": True})
    with pytest.raises(ConfigError, match=r"keep_best=True: must come with .*every_st"):
        loop.pretraining_job(config)


def test_what_is_not_pretraining_is_not_measured(data, tmp_path):
    config = make_config(data, **{"evaluation.every_steps": 2})
    with pytest.raises(ConfigError, match="every_steps=2: only pretraining"):
        loop.run(loop.pretraining_job(config), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_settings_of_a_figure_tell_it_from_others(data):
    def of(**changes):
        config = make_config(data, **{"evaluation.every_steps": 2}, **changes)
        return watching.watched(loop.pretraining_job(config)).held_out.of

    first = of()
    assert first == of(**{"log.every_steps": 1, "evaluation.lbfgs_steps": 7})
    others = [
        of(**{"evaluation.knn_temperature": 0.2}),
        of(**{"evaluation.held_out_split": "val"}),
        of(**{"evaluation.bank_images": 16}),
        of(**{"evaluation.crop_proportion": 0.5}),
    ]
    assert len({first, *others}) == 5
    assert all(len(words) <= 200 for words in (first, *others))


@pytest.mark.slow
def test_images_without_labels_are_pretrained_with_a_labelled_split(data, tmp_path):
    changes = {"data.split": "unlabelled", "evaluation.every_steps": 2}
    pretrain(make_config(data, **changes), str(tmp_path / "run"))
    records = read_metrics(tmp_path / "run" / FILE_NAME)
    measured = [record for record in records if "held_out_knn" in record]
    assert [record["step"] for record in measured] == [2, 4, 5]
    # There is no probe without labels to train it.
    assert not any("held_out_probe" in record for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("in_memory_mb", [0, 1024])
@pytest.mark.parametrize("shard_state", [False, True])
def test_devices_memory_and_sharding_change_no_figure(
    data, tmp_path, monkeypatch, in_memory_mb, shard_state
):
    run = {}
    changes = {"data.in_memory_mb": in_memory_mb, "parallel.shard_state": shard_state}
    config = make_config(data, **{"evaluation.every_steps": 5}, **changes)
    pretrain(config, str(tmp_path / "one"))
    run["one"] = figures_of(tmp_path / "one")
    monkeypatch.undo()
    pretrain(config, str(tmp_path / "eight"))
    run["eight"] = figures_of(tmp_path / "eight")
    for one, eight in zip(run["one"][5], run["eight"][5], strict=True):
        assert abs(one - eight) <= 1 / IMAGES
