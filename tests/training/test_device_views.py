"""Views made as a part of the train step: those of the host, and on any mesh the same.

On real images, at a step of the second epoch.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first

from simclr_jax import parallel
from simclr_jax.configs import smoke
from simclr_jax.training import compiling, device_views, input_pipeline, step

# No other array of the program has a size of 14.
SIZE, BATCH = 14, 16
STEP = 7200 // BATCH + 1


def make_config(device, micro_batch_size=None):
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": SIZE,
            "augment.placement": device,
            "encoder.depth": 10,
            "encoder.width": 0.0625,
            "encoder.stem": "cifar",
            "batch.batch_size": BATCH,
            "batch.micro_batch_size": micro_batch_size,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 1.0,
            "schedule.train_steps": 2 * STEP,
            "schedule.warmup_steps": 0,
        }
    )
    return config


@functools.cache
def source():
    config = make_config("accelerator")
    return input_pipeline.hold_in_memory(
        config, input_pipeline.open_source(config, "train")
    )


@functools.cache
def given(device, num_devices=1):
    """What the train step is given at STEP."""
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    return next(
        input_pipeline.global_batches(make_config(device), source(), STEP, mesh)
    )


@functools.cache
def made(device, num_devices=1, micro_batch_size=None):
    """The batch that the train step makes of it."""
    config = make_config(device, micro_batch_size)
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    make = device_views.from_config(config, mesh)
    if make is None:
        return jax.device_get(given(device, num_devices))
    split, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    program = jax.jit(
        make, in_shardings=(make.input_sharding, whole), out_shardings=split
    )
    return jax.device_get(program(given(device, num_devices), jnp.int32(STEP)))


@dataclasses.dataclass
class Run:
    """A step: parameters before and after, the rest after, and its program."""

    before: dict
    state: step.TrainState
    metrics: dict
    text: str

    @property
    def update(self):
        return jax.tree.map(np.subtract, self.state.params, self.before)


@functools.cache
def run(device, num_devices=1, micro_batch_size=None, batch_of=None):
    """Makes one step, on `made(*batch_of)` instead of its own batch where given."""
    config = make_config(device, micro_batch_size)
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    parts = step.pretraining_parts(config, num_classes=18, mesh=mesh)
    init = functools.partial(step.init_state, parts, image_size=SIZE)
    state = jax.device_get(jax.jit(init)(jax.random.key(1)))
    # Every branch open: no BatchNorm scale is left at zero.
    params = jax.tree.map(lambda p: np.where(p == 0, np.float32(0.1), p), state.params)
    state = dataclasses.replace(state, step=np.int32(STEP), params=params)
    batch = given(device, num_devices)
    if batch_of is not None:
        batch = parallel.shard_batch(mesh, made(*batch_of))
    state = jax.device_put(state, compiling.state_sharding(parts, mesh))
    advance = compiling.compile_step(
        parts, mesh, device_views.from_config(config, mesh)
    )
    program = advance.lower(state, batch).compile()
    after, metrics, _ = jax.device_get(program(state, batch))
    assert after.step == STEP + 1
    return Run(params, after, metrics, program.as_text())


def error(one, other):
    """|a - b| / |b| over all arrays."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    difference = sum(np.sum((a - b) ** 2.0) for a, b in pairs)
    return float(np.sqrt(difference / sum(np.sum(b**2.0) for _, b in pairs)))


def assert_same_step(found, expected):
    for name, value in expected.metrics.items():
        np.testing.assert_allclose(
            found.metrics[name], value, rtol=2e-5, atol=1e-7, err_msg=name
        )
    assert error(found.state.batch_stats, expected.state.batch_stats) < 1e-5
    # With plain SGD the update is the gradient times the rate.
    assert error(found.update, expected.update) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("device", ["host_crop", "accelerator"])
def test_eight_devices_make_the_step_of_one(device):
    assert_same_step(run(device, 8), run(device, 1))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["accelerator", "host_crop"])
def test_the_views_are_those_of_the_host_up_to_rounding(device):
    found, expected = made(device), made("host")
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    difference = np.abs(found["images"].astype(int) - expected["images"])
    if device == "accelerator":
        assert difference.max() <= 1
        assert np.mean(difference > 0) < 1e-3
    else:
        # Crops are rounded to levels on their way, which colours multiply.
        assert difference.max() < 16
        assert np.mean(difference > 2) < 0.02
    tolerance = 1e-3 if device == "accelerator" else 1e-2
    loss = run(device).metrics["loss"]
    np.testing.assert_allclose(loss, run("host").metrics["loss"], rtol=tolerance)


def test_the_step_trains_on_the_views_that_it_makes():
    expected = run("host", batch_of=("accelerator",))
    assert_same_step(run("accelerator"), expected)


@pytest.mark.parametrize("device", first(1, ["accelerator", "host_crop"]))
@pytest.mark.parametrize("num_devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_views_made_in_parts_are_those_made_at_once(device, num_devices):
    whole = made(device)
    parts = made(device, num_devices, micro_batch_size=4)
    np.testing.assert_array_equal(parts["labels"], whole["labels"])
    np.testing.assert_array_equal(parts["images"], whole["images"])


@pytest.mark.parametrize("device", ["host_crop", "accelerator"])
@pytest.mark.slow
def test_views_made_in_parts_take_less_memory(device):
    config = make_config(device)
    config.image_size, config.batch.batch_size = 64, 64
    memory = []
    for config.batch.micro_batch_size in (None, 8):
        make = device_views.from_config(config, parallel.create_mesh(jax.devices()[:1]))
        given = make.input_shapes((64, 32, 32))
        step_number = jax.ShapeDtypeStruct((), jnp.int32)
        program = jax.jit(make).lower(given, step_number).compile()
        memory.append(program.memory_analysis().temp_size_in_bytes)
    assert memory[1] < 0.5 * memory[0]


@pytest.mark.slow
def test_micro_batches_train_on_the_same_views():
    expected = run("host", 1, 8, batch_of=("accelerator",))
    assert_same_step(run("accelerator", 8, 8), expected)


@pytest.mark.parametrize(
    ("device", "micro_batch_size"),
    [
        pytest.param("accelerator", None, marks=pytest.mark.slow),
        pytest.param("host_crop", None, marks=pytest.mark.slow),
        pytest.param("accelerator", 8, marks=pytest.mark.slow),
    ],
)
def test_no_collective_moves_images(device, micro_batch_size):
    text = run(device, 8, micro_batch_size).text
    moving = r"all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter"
    collectives = [line for line in text.splitlines() if re.search(moving, line)]
    assert collectives, "a program for 8 devices without any collective"
    images = rf"u8\[|\b{SIZE},{SIZE}\b|\b32,32,3\b"
    # Not what else the line says, such as the operands' names.
    arrays = [line.split("(")[0] + line.split("(")[1] for line in collectives]
    assert not [line for line in arrays if re.search(images, line)]


@pytest.mark.slow
def test_steps_and_seeds_have_views_of_their_own():
    mesh = parallel.create_mesh(jax.devices()[:1])
    first = made("accelerator")["images"]
    make = device_views.from_config(make_config("accelerator"), mesh)
    later = jax.jit(make)(given("accelerator"), jnp.int32(STEP + 1))["images"]
    assert np.mean(np.asarray(later) != first) > 0.5
    config = make_config("accelerator")
    config.seed = 1
    make = device_views.from_config(config, mesh)
    other = jax.jit(make)(given("accelerator"), jnp.int32(STEP))["images"]
    assert np.mean(np.asarray(other) != first) > 0.5
