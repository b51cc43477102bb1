"""Resuming with another batch size or schedule: images, rates, and kills on the way."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first

from simclr_jax import load, optim, parallel, paths
from simclr_jax.configs import smoke
from simclr_jax.data.sampling import order
from simclr_jax.runs import checkpoints, directory, metrics_writer, plans
from simclr_jax.training import build, compiling, replanning
from simclr_jax.training.step import StepParts, TrainState

SHARDING = parallel.replicated(parallel.create_mesh())
OPTIMIZER = optim.lars(lambda step: 0.1, weight_decay=1e-4)
GENERATOR = np.random.default_rng(0)
PARAMS = {
    part: {"kernel": GENERATOR.normal(size=(3, 4)).astype(np.float32)}
    for part in ("encoder", "head")
}


def make_config(batch_size=16, **settings):
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "batch.batch_size": batch_size,
            "schedule.train_steps": 6400 // batch_size,
            "schedule.warmup_steps": 320 // batch_size,
            "encoder.stem": "cifar",
            **settings,
        }
    )
    return config


def make_state(step):
    params = jax.tree.map(jnp.asarray, PARAMS)
    opt_state = jax.tree.map(lambda x: x + 1, OPTIMIZER.init(params))
    state = TrainState(
        jnp.int32(step),
        params,
        {"encoder": {"bn": {"mean": jnp.arange(3.0)}}},
        optim.at_step(opt_state, step),
    )
    return jax.device_put(state, SHARDING)


def counts(state):
    """(step, position of the schedule)."""
    found = [
        int(value)
        for path, value in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "count" in jax.tree_util.keystr(path)
    ]
    return int(state.step), *found


@pytest.fixture(autouse=True)
def of_tiny_states(monkeypatch):
    like = make_state(0)
    monkeypatch.setattr(
        compiling,
        "state_sharding",
        lambda parts, mesh: jax.tree.map(lambda _: SHARDING, like),
    )


def start(workdir, config):
    """What a start of `training.loop` does up to the first step."""
    parts = StepParts(
        build.make_model(config, num_classes=None), None, OPTIMIZER, lambda step: 0.1
    )
    opened = checkpoints.Checkpoints(workdir, keep_last=2, keep_every_steps=None)
    try:
        like = jax.eval_shape(lambda: make_state(0))
        sharding = compiling.state_sharding(parts, None)
        state = opened.restore_newest(like, sharding, "hash")
        state = replanning.resume(config, parts, None, opened, state, workdir)
        directory.write_config(workdir, config)
        writer = metrics_writer.MetricsWriter(workdir, resume_step=int(state.step))
        writer.write(int(state.step) + 1, {"loss": float(config.batch.batch_size)})
        writer.close()
        return state
    finally:
        opened.close()


def train(workdir, config, *steps, described=True):
    """Leaves what a run has left that was killed after its last step."""
    directory.write_config(workdir, config)
    description = build.describe(config, build.make_model(config, num_classes=None))
    if not described:
        del description["batch_size"]
    opened = checkpoints.Checkpoints(workdir, keep_last=2, keep_every_steps=None)
    for step in steps:
        opened.save(step, make_state(step), description)
        opened.wait()
    opened.close()
    root = paths.as_path(workdir)
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 311)]
    (root / metrics_writer.FILE_NAME).write_text("".join(lines))
    (root / "events.out.tfevents.1").write_text("events")


@pytest.fixture(params=first(1, ["disk", "gcs"]))
def workdir(request, tmp_path):
    if request.param == "gcs":
        return f"{request.getfixturevalue('gcs')}/run"
    return str(tmp_path / "run")


def steps_in(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def steps_logged(path):
    return [record["step"] for record in metrics_writer.read_metrics(path)]


def check_converted(workdir, state):
    """The run of 300 steps of 16 images, now with 32."""
    root = paths.as_path(workdir)
    assert counts(state) == (150, 150)
    expected = make_state(300)
    for part in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(state, part), getattr(expected, part)
        )
    moments = optim.at_step(expected.opt_state, 150)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, moments)
    folder, step = checkpoints.open_for_reading(workdir, None)
    assert (folder.parent.name, step) == ("checkpoints_2", 150)
    assert checkpoints.read_description(folder)["batch_size"] == 32
    assert steps_in(root / "checkpoints") == [290, 300]
    assert directory.read_config(workdir)["batch"]["batch_size"] == 32
    assert steps_logged(root / "metrics.jsonl") == [151]
    assert steps_logged(root / "plan_1" / "metrics.jsonl") == [*range(1, 311)]
    assert (root / "plan_1" / "events.out.tfevents.1").read_text() == "events"
    assert not (root / "events.out.tfevents.1").exists()


def test_a_larger_batch_begins_a_plan_at_the_same_image(workdir, caplog):
    train(workdir, make_config(16), 290, 300)
    with caplog.at_level("INFO", logger="simclr_jax"):
        state = start(workdir, make_config(32))
    check_converted(workdir, state)
    assert "Batch size 16 -> 32: step 300 is now step 150." in caplog.text
    # The same command again.
    assert counts(start(workdir, make_config(32))) == (150, 150)
    check_converted(workdir, state)


def test_checkpoints_of_earlier_versions_have_the_size_of_the_config(tmp_path):
    train(str(tmp_path), make_config(16), 290, 300, described=False)
    check_converted(str(tmp_path), start(str(tmp_path), make_config(32)))


def test_what_does_not_divide_is_rounded_down_and_said(tmp_path, caplog):
    train(str(tmp_path), make_config(16), 7)
    with caplog.at_level("WARNING", logger="simclr_jax"):
        state = start(str(tmp_path), make_config(40))
    assert counts(state) == (2, 2)  # 112 images are 2 batches of 40
    assert "with 32 of the images seen to be seen again" in caplog.text


def test_a_smaller_batch_and_the_first_steps(tmp_path):
    train(str(tmp_path), make_config(16), 1)
    assert counts(start(str(tmp_path), make_config(64))) == (0, 0)
    assert checkpoints.open_for_reading(str(tmp_path), None)[1] == 0
    assert counts(start(str(tmp_path), make_config(8))) == (0, 0)
    train(str(tmp_path / "other"), make_config(16), 10)
    assert counts(start(str(tmp_path / "other"), make_config(8))) == (20, 20)


PHASES = {
    "before the new folder": (checkpoints.Checkpoints, "begin_plan", False),
    "before the save": (checkpoints.Checkpoints, "save", False),
    "after the save": (checkpoints.Checkpoints, "wait", True),
    "before the logs move": (plans, "set_logs_aside", False),
    "after the logs moved": (plans, "set_logs_aside", True),
    "before the config": (directory, "write_config", False),
    "after the config": (directory, "write_config", True),
}


class Killed(BaseException):
    pass


def kill(monkeypatch, phase):
    owner, name, after = PHASES[phase]
    original = getattr(owner, name)

    def killed(*arguments, **settings):
        if after:
            original(*arguments, **settings)
        raise Killed

    monkeypatch.setattr(owner, name, killed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(str(workdir), make_config(16), 290, 300)
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return str(tmp_path / "run")


@pytest.mark.parametrize("phase", PHASES)
def test_after_a_kill_the_same_command_converts_the_run(phase, run):
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, phase)
        with pytest.raises(Killed):
            start(run, make_config(32))
    # Whoever reads it in between has the state before or after.
    folder, step = checkpoints.open_for_reading(run, None)
    assert (folder.parent.name, step) in (("checkpoints", 300), ("checkpoints_2", 150))
    check_converted(run, start(run, make_config(32)))


@pytest.mark.parametrize("phase", first(3, [*PHASES]))
def test_after_a_kill_the_old_batch_size_still_resumes_at_its_step(phase, run):
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, phase)
        with pytest.raises(Killed):
            start(run, make_config(32))
    state = start(run, make_config(16))
    assert counts(state) == (300, 300)
    jax.tree.map(np.testing.assert_array_equal, state.params, make_state(0).params)
    assert checkpoints.open_for_reading(run, None)[1] == 300
    logged = steps_logged(paths.as_path(run) / "metrics.jsonl")
    assert logged[-1] == 301
    assert len(logged) == len(set(logged))


def test_a_kill_between_two_logs_leaves_the_rest_to_the_next_start(run, monkeypatch):
    replace = type(paths.as_path(run)).replace
    with pytest.MonkeyPatch.context() as patch:

        def killed(path, target):
            if path.name.startswith("events"):
                raise Killed
            return replace(path, target)

        patch.setattr(type(paths.as_path(run)), "replace", killed)
        with pytest.raises(Killed):
            start(run, make_config(32))
    check_converted(run, start(run, make_config(32)))


def test_an_unfinished_save_of_the_new_plan_does_not_count(run):
    unfinished = paths.as_path(run) / "checkpoints_2" / "150.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    assert checkpoints.open_for_reading(run, None)[1] == 300
    check_converted(run, start(run, make_config(32)))


def test_sizes_may_change_again_and_back(run):
    start(run, make_config(32))
    assert counts(start(run, make_config(64))) == (75, 75)
    root = paths.as_path(run)
    assert steps_logged(root / "plan_2" / "metrics.jsonl") == [151]
    assert counts(start(run, make_config(16))) == (300, 300)
    assert checkpoints.open_for_reading(run, None)[0].parent.name == "checkpoints_4"
    assert steps_in(root / "checkpoints") == [290, 300]


def test_a_run_without_its_config_still_knows_the_size(run):
    (paths.as_path(run) / "config.json").unlink()
    assert counts(start(run, make_config(32))) == (150, 150)


def test_checkpoints_of_an_earlier_plan_are_still_read_by_their_path(run, monkeypatch):
    start(run, make_config(32))
    found = []

    def opened(workdir, *, step=None, folder_name=None, check=None):
        folder, step = checkpoints.open_for_reading(workdir, step, folder_name)
        found.append((folder.parent.name, step))

    monkeypatch.setattr("simclr_jax.weights.encoder.load", opened)
    load(run)
    load(f"{run}/checkpoints/290")
    load(f"{run}/checkpoints_2/150")
    assert found == [
        ("checkpoints_2", 150),
        ("checkpoints", 290),
        ("checkpoints_2", 150),
    ]


@pytest.mark.parametrize(
    ("old", "new", "step"), [(8, 16, 30), (16, 8, 7), (8, 24, 15), (32, 8, 5)]
)
def test_every_image_is_seen_as_often_as_without_a_change(old, new, step):
    """Counted with the order of images that training uses."""
    num_examples, epochs = 192, 2
    seen = np.zeros(num_examples, int)

    def look(batch_size, first, last):
        for number in range(first, last):
            indices, _ = order.batch_indices(
                number, seed=3, num_examples=num_examples, batch_size=batch_size
            )
            np.add.at(seen, indices, 1)

    look(old, 0, step)
    resumed = replanning.same_images(step, old, new)
    assert resumed * new == step * old
    look(new, resumed, epochs * num_examples // new)
    np.testing.assert_array_equal(seen, epochs)


def test_the_rate_stays_where_it_was(caplog, run):
    """Twice the batch, half the steps, the same place in the cosine."""
    keep = {"optimizer.scaling": "none"}
    old, new = make_config(16, **keep), make_config(32, **keep)
    directory.write_config(run, old)
    before, after = build.make_schedule(old), build.make_schedule(new)
    for step in (0, 10, 20, 300, 399):
        resumed = replanning.same_images(step, 16, 32)
        if 2 * resumed == step:
            np.testing.assert_allclose(after(resumed), before(step), rtol=1e-6)
    with caplog.at_level("WARNING", logger="simclr_jax"):
        start(run, new)
    assert "learning rate" not in caplog.text


def test_a_rate_that_changes_is_said(run, caplog):
    with caplog.at_level("WARNING", logger="simclr_jax"):
        start(run, make_config(16, **{"schedule.train_steps": 800}))
    old, new = (
        float(build.make_schedule(make_config(16, **{"schedule.train_steps": n}))(300))
        for n in (400, 800)
    )
    assert (
        f"The learning rate was {old:.4g} here (step 300 of 400) and is now {new:.4g} "
        "(step 300 of 800)." in caplog.text
    )


def test_a_rate_is_that_of_the_old_plan_after_a_kill_too(run, caplog):
    larger = make_config(32, **{"optimizer.scaling": "linear"})
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, "before the config")
        with pytest.raises(Killed):
            start(run, larger)
    caplog.clear()
    with caplog.at_level("WARNING", logger="simclr_jax"):
        start(run, larger)
    rate = float(build.make_schedule(make_config(16))(300))
    assert f"was {rate:.4g} here (step 300 of 400) and is now" in caplog.text


def test_steps_that_do_not_follow_the_batch_size_are_said(run, caplog):
    with caplog.at_level("WARNING", logger="simclr_jax"):
        start(run, make_config(32, **{"schedule.train_steps": 400}))
    assert "config.schedule.train_steps=400 is that of the old batch size" in (
        caplog.text
    )
    assert "2 times as many images" in caplog.text
