"""Every file of a checkpoint, damaged in every way: found, and the run falls back."""

import collections
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from simclr_jax import parallel
from simclr_jax.errors import CheckpointDamaged, CheckpointError
from simclr_jax.runs import checkpoints
from simclr_jax.training.step import TrainState

GENERATOR = np.random.default_rng(0)
HASH = "0123456789abcdef"


def state_of(step: int) -> TrainState:
    def array(*shape):
        return GENERATOR.normal(size=shape).astype(np.float32)

    params = {
        "encoder": {"conv": {"kernel": array(3, 3, 16, 64)}},
        "head": {"bias": array(16)},
    }
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={"encoder": {"bn": {"mean": array(64)}}},
        opt_state=(jax.tree.map(np.ones_like, params), {}),
    )


SHARDING = parallel.replicated(parallel.create_mesh())


def opened(workdir):
    return checkpoints.Checkpoints(str(workdir), keep_last=9, keep_every_steps=None)


def restored(workdir):
    like = state_of(0)
    store = opened(workdir)
    try:
        return store.restore_newest(
            jax.eval_shape(lambda: like), jax.tree.map(lambda _: SHARDING, like), HASH
        )
    finally:
        store.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2, and their states."""
    workdir = tmp_path_factory.mktemp("saved")
    store = opened(workdir)
    states = {step: state_of(step) for step in (1, 2)}
    for step, state in states.items():
        state = jax.device_put(state, SHARDING)
        store.save(step, state, {"config_hash": HASH})
        store.wait()
    store.close()
    return workdir, states


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def assert_equal(state, expected):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(expected),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_a_good_checkpoint_is_restored(run, saved):
    assert_equal(restored(run), saved[1][2])


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def flip(path, generator):
    content = bytearray(path.read_bytes())
    for place in generator.integers(0, len(content), 64):
        content[place] ^= 0x10
    path.write_bytes(content)


def halve(path):
    # The last bytes of a file may be a table that a newer one replaced.
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "flipped": lambda step: flip(largest(step / "state"), np.random.default_rng(1)),
    "truncated": lambda step: halve(largest(step / "state")),
    "emptied": lambda step: largest(step / "state").write_bytes(b""),
    "deleted": lambda step: largest(step / "state").unlink(),
    "item lost": lambda step: shutil.rmtree(step / "state"),
    "description lost": lambda step: shutil.rmtree(step / "description"),
    "description of nothing": lambda step: (
        step / "description" / "metadata"
    ).write_text("{}"),
    "empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
    "of another step": lambda step: (
        shutil.rmtree(step / "state"),
        shutil.copytree(step.with_name("1") / "state", step / "state"),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_run_falls_back_to_the_newest_good_one(run, saved, name, caplog):
    folder = run / checkpoints.FOLDER
    DAMAGES[name](folder / "2")
    assert_equal(restored(run), saved[1][1])
    assert f"checkpoint {folder / '2'}: is damaged (" in caplog.text
    assert not (folder / "2").exists()
    assert (folder / "2.damaged").is_dir()
    assert_equal(restored(run), saved[1][1])


def test_where_none_is_good_nothing_is_moved(run):
    folder = run / checkpoints.FOLDER
    for step in ("1", "2"):
        DAMAGES["flipped"](folder / step)
    with pytest.raises(CheckpointError, match=r"none is intact.*/2: is damaged"):
        restored(run)
    assert sorted(p.name for p in folder.iterdir() if p.name.isdecimal()) == ["1", "2"]


def test_a_changed_config_is_no_damage(run):
    folder = run / checkpoints.FOLDER
    path = folder / "2" / "description" / "metadata"
    description = json.loads(path.read_text())
    description["config_hash"] = "another"
    del description["checksum"], description["checksums"]
    path.write_text(json.dumps(description))
    DAMAGES["truncated"](folder / "2")
    with pytest.raises(CheckpointError, match="saved under another config"):
        restored(run)
    assert (folder / "2").exists()


def weights_of(state):
    """The items `encoder` and `heads` of a state."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return dict(
        zip(("encoder", "heads"), checkpoints.separate_encoder(variables), strict=True)
    )


def read_weights(folder, item, like):
    description = checkpoints.read_description(folder)
    return checkpoints.read_variables(
        folder, item, like, SHARDING, description["checksums"]
    )


@pytest.mark.parametrize("item", ["encoder", "heads"])
def test_readers_of_weights_find_damage_too(run, saved, item):
    folder, _ = checkpoints.open_for_reading(str(run), None)
    want = weights_of(saved[1][2])[item]
    assert_equal(read_weights(folder, item, want), want)
    flip(largest(pathlib.Path(folder) / item), np.random.default_rng(2))
    with pytest.raises(CheckpointDamaged, match=f"{folder}: is damaged"):
        read_weights(folder, item, want)


def damage_at_random(path, generator):
    content = bytearray(path.read_bytes())
    kind = generator.integers(4)
    if kind == 0:
        path.unlink()
        return
    if kind == 1:
        del content[generator.integers(0, max(len(content), 1)) :]
    for place in generator.integers(
        0, max(len(content), 1), {2: 1, 3: 16}.get(kind, 0)
    ):
        content[place : place + 1] = bytes([generator.integers(0, 256)])
    path.write_bytes(content)


@pytest.mark.slow
def test_500_random_damages_are_found_or_harmless(saved, tmp_path):
    """None is loaded as good, by a run that resumes or by readers of the weights."""
    generator = np.random.default_rng(3)
    found = collections.Counter()
    for number in range(500):
        run = tmp_path / str(number)
        shutil.copytree(saved[0], run)
        step = run / checkpoints.FOLDER / "2"
        files = sorted(path for path in step.rglob("*") if path.is_file())
        path = files[number % len(files)]
        damage_at_random(path, generator)
        name = path.relative_to(step).parts[0]
        for item, want in weights_of(saved[1][2]).items():
            try:
                assert_equal(read_weights(epath.Path(step), item, want), want)
            except CheckpointDamaged:
                found[name] += 1
        state = restored(run)
        taken = int(state.step)
        found[name] += taken == 1
        assert_equal(state, saved[1][taken])
        shutil.rmtree(run)
    print(found)
    for item in ("state", "encoder", "heads", "description"):
        assert found[item] > 20
