"""The train step: on any mesh the same, and what each metric means."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first

from simclr_jax import losses, models, optim, parallel
from simclr_jax.training import compiling, step

NUM_IMAGES, SIZE, CLASSES = 16, 16, 5


def make_parts(optimizer: optax.GradientTransformation) -> step.StepParts:
    model = models.SimCLR(
        encoder=models.create_encoder(depth=10, width=0.125, stem="cifar"),
        head=models.create_projection_head(num_layers=2, output_dim=16),
        num_classes=CLASSES,
    )
    return step.StepParts(
        model=model,
        objective=step.Contrastive(
            loss=lambda z: losses.nt_xent(z, temperature=0.5),
            temperature=0.5,
            chance=losses.chance_level(NUM_IMAGES),
            probe_weight_decay=1e-4,
        ),
        optimizer=optimizer,
        schedule=lambda step: 0.1,
    )


SGD = make_parts(optax.sgd(1.0))
LARS = make_parts(optim.lars(0.1, weight_decay=1e-4))


def make_batch(seed: int) -> dict[str, np.ndarray]:
    # Seed 0 has a ReLU input within rounding of 0, whose gradient then flips.
    generator = np.random.default_rng(1 + seed)
    shape = (NUM_IMAGES, 2, SIZE, SIZE, 3)
    return {
        "images": generator.integers(0, 256, shape, np.uint8),
        "labels": generator.integers(0, CLASSES, NUM_IMAGES).astype(np.int32),
    }


@functools.cache
def initial_state(parts: step.StepParts) -> step.TrainState:
    """A state with every branch open: no BatchNorm scale is left at zero."""
    init = compiling.compile_init(parts, compiled(parts, 1)[0], image_size=SIZE)
    state = jax.device_get(init(jax.random.key(0)))
    params = jax.tree.map(lambda p: np.where(p == 0, np.float32(0.1), p), state.params)
    return step.TrainState(state.step, params, state.batch_stats, state.opt_state)


@functools.cache
def compiled(parts: step.StepParts, num_devices: int):
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    return mesh, compiling.compile_step(parts, mesh)


@functools.cache
def compiled_diagnostics(parts: step.StepParts, num_devices: int):
    return compiling.compile_diagnostics(parts, compiled(parts, num_devices)[0])


def run(
    parts: step.StepParts, num_devices: int, num_steps: int, perturbation: float = 0.0
) -> tuple[step.TrainState, dict[str, np.ndarray]]:
    """The state after some steps, and all metrics of the last."""
    mesh, advance = compiled(parts, num_devices)
    state = initial_state(parts)
    noise = jax.tree.map(
        lambda p: 1 + perturbation * jax.random.normal(jax.random.key(1), p.shape),
        state.params,
    )
    params = jax.tree.map(jnp.multiply, state.params, noise)
    state = step.TrainState(state.step, params, state.batch_stats, state.opt_state)
    state = jax.device_put(state, parallel.replicated(mesh))
    for number in range(num_steps):
        batch = parallel.shard_batch(mesh, make_batch(number))
        state, metrics, outputs = advance(state, batch)
    metrics |= compiled_diagnostics(parts, num_devices)(outputs)
    return jax.device_get(state), jax.device_get(metrics)


def relative_errors(a: dict, b: dict) -> dict[str, float]:
    """|a - b| / |b| for each leaf."""
    return {
        jax.tree_util.keystr(path): float(
            np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-6)
        )
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
        )
    }


def gradients(num_devices: int) -> dict:
    """With plain SGD at rate 1 the first update is the gradient."""
    state, _ = run(SGD, num_devices, num_steps=1)
    return jax.tree.map(np.subtract, initial_state(SGD).params, state.params)


def test_eight_devices_compute_the_loss_gradient_and_statistics_of_one():
    one, one_metrics = run(SGD, 1, num_steps=1)
    eight, eight_metrics = run(SGD, 8, num_steps=1)
    for name, value in one_metrics.items():
        np.testing.assert_allclose(eight_metrics[name], value, rtol=2e-5, err_msg=name)
    errors = relative_errors(eight.batch_stats, one.batch_stats)
    assert max(errors.values()) < 1e-5, errors
    errors = relative_errors(gradients(8), gradients(1))
    assert max(errors.values()) < 2e-5, errors


@pytest.mark.slow
def test_eight_devices_make_the_lars_update_of_one():
    one, _ = run(LARS, 1, num_steps=1)
    eight, _ = run(LARS, 8, num_steps=1)
    errors = relative_errors(eight.params, one.params)
    assert max(errors.values()) < 2e-6, errors


@pytest.mark.slow
def test_three_steps_on_eight_devices_stay_within_the_noise_of_one():
    one, _ = run(LARS, 1, num_steps=3)
    eight, _ = run(LARS, 8, num_steps=3)
    nudged, _ = run(LARS, 1, num_steps=3, perturbation=1e-7)
    for name in ("params", "batch_stats"):
        error = relative_errors(getattr(eight, name), getattr(one, name))
        floor = relative_errors(getattr(nudged, name), getattr(one, name))
        assert max(error.values()) < 5 * max(floor.values()), name


@pytest.mark.slow
def test_the_batch_is_split_and_the_state_whole_on_every_device():
    mesh, _ = compiled(SGD, 8)
    batch = parallel.shard_batch(mesh, make_batch(0))
    shard = batch["images"].addressable_shards[3]
    assert shard.data.shape[0] == NUM_IMAGES // 8
    np.testing.assert_array_equal(shard.data, make_batch(0)["images"][6:8])
    state = compiling.compile_init(SGD, mesh, image_size=SIZE)(jax.random.key(0))
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))


@pytest.mark.slow
def test_a_state_split_over_devices_makes_the_same_update():
    split = dataclasses.replace(LARS, shard_state=True)
    mesh, advance = compiled(split, 8)
    layout = compiling.state_sharding(split, mesh)
    state = jax.device_put(initial_state(split), layout)
    kernel = state.params["encoder"]["group4"]["block1"]["conv2"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    assert state.params["encoder"]["stem"]["bn1"]["scale"].is_fully_replicated
    after, metrics, _ = advance(state, parallel.shard_batch(mesh, make_batch(0)))
    for leaf, sharding in zip(
        jax.tree.leaves(after), jax.tree.leaves(layout), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    one, one_metrics = run(LARS, 1, num_steps=1)
    errors = relative_errors(jax.device_get(after.params), one.params)
    assert max(errors.values()) < 2e-6, errors
    np.testing.assert_allclose(metrics["loss"], one_metrics["loss"], rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["wide", "blocks"])
def test_computing_activations_again_changes_nothing(remat):
    model = dataclasses.replace(SGD.model, encoder=SGD.model.encoder.copy(remat=remat))
    again, metrics = run(dataclasses.replace(SGD, model=model), 1, num_steps=1)
    once, once_metrics = run(SGD, 1, num_steps=1)
    errors = relative_errors(again.params, once.params)
    assert max(errors.values()) < 1e-5, errors
    np.testing.assert_allclose(metrics["loss"], once_metrics["loss"], rtol=1e-6)


def shapes():
    """Those of the step's arguments: a state and a batch."""
    return jax.eval_shape(lambda *trees: trees, initial_state(SGD), make_batch(0))


@functools.cache
def text_for_eight():
    """The program of a step on eight devices."""
    _, advance = compiled(SGD, 8)
    return advance.lower(*shapes()).compile().as_text()


def test_no_collective_moves_images():
    collectives = [line for line in text_for_eight().splitlines() if "all-" in line]
    assert collectives, "a program for 8 devices without any collective"
    assert not [line for line in collectives if f"{SIZE},{SIZE},3]" in line]


def test_only_the_diagnostics_sum_covariances_over_the_devices():
    _, advance = compiled(SGD, 8)
    state, batch = shapes()
    _, _, outputs = jax.eval_shape(advance, state, batch)
    width = outputs.z.shape[1]

    def sums(text):
        lines = [line for line in text.splitlines() if " all-reduce" in line]
        assert lines
        return [line for line in lines if f"f32[{width},{width}]" in line]

    assert not sums(text_for_eight())
    diagnostics = compiled_diagnostics(SGD, 8).lower(outputs).compile()
    assert sums(diagnostics.as_text())


@pytest.mark.slow
def test_metrics_are_those_of_the_state_before_the_update():
    state = initial_state(SGD)
    batch = make_batch(0)
    _, metrics = run(SGD, 1, num_steps=1)
    images = batch["images"].reshape(-1, SIZE, SIZE, 3) / np.float32(255)
    apply = jax.jit(functools.partial(SGD.model.apply, train=True))
    outputs, _ = apply(state.params, state.batch_stats, images)
    z = outputs.z.reshape(NUM_IMAGES, 2, -1)
    np.testing.assert_allclose(
        metrics["loss"], losses.nt_xent(z, temperature=0.5), rtol=1e-5
    )
    labels = np.repeat(batch["labels"], 2)
    accuracy = np.mean(np.argmax(outputs.logits, axis=1) == labels)
    np.testing.assert_allclose(metrics["probe_accuracy"], accuracy, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["gradient_norm"], optax.tree.norm(gradients(1)), rtol=1e-3
    )
    np.testing.assert_allclose(metrics["learning_rate"], 0.1, rtol=1e-6)


def test_unlabelled_images_leave_the_probe_alone():
    batch = make_batch(0)
    batch["labels"] = np.full(NUM_IMAGES, -1, np.int32)
    mesh, advance = compiled(SGD, 1)
    kernel = np.asarray(initial_state(SGD).params["probe"]["kernel"])
    state = jax.device_put(initial_state(SGD), parallel.replicated(mesh))
    after, metrics, _ = advance(state, parallel.shard_batch(mesh, batch))
    assert metrics["probe_loss"] == 0
    # Weight decay alone moves it: rate 1 times 1e-4.
    np.testing.assert_allclose(
        after.params["probe"]["kernel"], (1 - 1e-4) * kernel, rtol=1e-5
    )


@pytest.mark.parametrize("depth", first(1, [10, 18, 50]))
def test_bfloat16_trains_with_float32_state(depth):
    model = models.SimCLR(
        encoder=models.create_encoder(
            depth=depth, width=0.0625, stem="cifar", dtype=jnp.bfloat16
        ),
        head=models.create_projection_head(num_layers=2, dtype=jnp.bfloat16),
    )
    parts = dataclasses.replace(
        LARS,
        model=model,
        objective=step.Contrastive(
            loss=lambda z: losses.nt_xent(z, temperature=0.05),
            temperature=0.05,
        ),
    )
    init = functools.partial(step.init_state, parts, image_size=8)
    state = jax.eval_shape(init, jax.random.key(0))
    batch = {
        "images": make_batch(0)["images"][:, :, :8, :8],
        "labels": np.full(NUM_IMAGES, -1, np.int32),
    }
    shapes = jax.eval_shape(
        functools.partial(step.train_step, parts=parts), state, batch
    )
    assert {x.dtype.name for x in jax.tree.leaves(shapes[0])} <= {"float32", "int32"}
    assert {x.dtype.name for x in jax.tree.leaves(shapes[1:])} == {"float32"}
    if depth == 18:
        mesh = parallel.create_mesh(jax.devices()[:1])
        state = jax.jit(init)(jax.random.key(0))
        _, metrics, outputs = compiling.compile_step(parts, mesh)(state, batch)
        metrics |= compiling.compile_diagnostics(parts, mesh)(outputs)
        assert "effective_rank_z" in metrics
        assert all(np.isfinite(value).all() for value in metrics.values())
