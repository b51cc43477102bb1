"""Micro-batches: the gradient of the whole batch in a part of its memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import losses, models, optim, parallel
from simclr_jax.models import SimCLR
from simclr_jax.training import compiling, micro_batches, objectives, step

NUM_IMAGES, SIZE, CLASSES = 32, 8, 5


class Frozen(SimCLR):
    """The model with the running BatchNorm statistics, also in training."""

    def apply(self, params, batch_stats, images, *, train):
        del train
        return super().apply(params, batch_stats, images, train=False)


def make_parts(num_micro_batches, *, frozen=False, **changes):
    model = (Frozen if frozen else SimCLR)(
        encoder=models.create_encoder(depth=10, width=0.125, stem="cifar"),
        head=models.create_projection_head(num_layers=2, output_dim=16),
        num_classes=CLASSES,
    )
    parts = step.StepParts(
        model=model,
        objective=step.Contrastive(
            loss=lambda z: losses.nt_xent(z, temperature=0.5),
            temperature=0.5,
            probe_weight_decay=1e-2,
        ),
        optimizer=optim.lars(0.1, weight_decay=1e-4),
        schedule=lambda step: 0.1,
        num_micro_batches=num_micro_batches,
    )
    return dataclasses.replace(parts, **changes)


@functools.cache
def start():
    """Parameters without zeros, and statistics that are not those of a fresh net."""
    state = step.init_state(make_parts(1), jax.random.key(0), image_size=SIZE)
    params = jax.tree.map(lambda p: jnp.where(p == 0, 0.1, p), state.params)
    stats = jax.tree.map(lambda s: s + 0.3, state.batch_stats)
    generator = np.random.default_rng(1)
    batch = {
        "images": generator.integers(0, 256, (NUM_IMAGES, 2, SIZE, SIZE, 3), np.uint8),
        "labels": generator.integers(-1, CLASSES, NUM_IMAGES).astype(np.int32),
    }
    return jax.device_get(params), jax.device_get(stats), batch


def gradients(parts, num_devices=1):
    params, stats, batch = start()
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    split, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    function = step.gradients
    if parts.num_micro_batches > 1:
        function = functools.partial(
            micro_batches.gradients, num_micro_batches=parts.num_micro_batches
        )
    function = functools.partial(function, parts.model, parts.objective)
    *found, outputs = jax.jit(function, in_shardings=(whole, whole, split))(
        params, stats, batch
    )
    diagnostics = compiling.compile_diagnostics(parts, mesh)(outputs)
    found[-1] |= diagnostics
    return jax.device_get(found)


def error(one, other):
    return max(
        float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_with_fixed_statistics_it_is_the_whole_batch():
    whole, stats, metrics = gradients(make_parts(1, frozen=True))
    # Eight eighths of a number need not sum to it.
    found, same_stats, same_metrics = gradients(make_parts(8, frozen=True))
    assert error(found, whole) < 1e-5
    jax.tree.map(np.testing.assert_array_equal, same_stats, stats)
    jax.tree.map(np.testing.assert_array_equal, same_stats, start()[1])
    for name, value in metrics.items():
        np.testing.assert_allclose(same_metrics[name], value, rtol=2e-5, err_msg=name)


def of_the_same_model(params, stats, batch, parts):
    """Loss and mean statistics, all micro-batches through the model in one graph."""
    number = parts.num_micro_batches
    pieces, new_stats = [], []
    for i in range(number):
        # The documented assignment: image p is in micro-batch p mod n.
        images = objectives.as_float(batch["images"][i::number])
        outputs, updated = parts.model.apply(params, stats, images, train=True)
        pieces.append(jax.tree.map(lambda x: x.reshape(-1, 2, x.shape[-1]), outputs))
        new_stats.append(updated)
    outputs = jax.tree.map(
        lambda *xs: jnp.stack(xs, axis=1).reshape(2 * NUM_IMAGES, -1), *pieces
    )
    value, metrics = parts.objective(outputs, params, batch)
    mean = jax.tree.map(lambda *xs: sum(xs) / number, *new_stats)
    return value, (mean, metrics)


@pytest.mark.slow
def test_with_batch_statistics_it_is_the_gradient_of_the_same_model():
    parts = make_parts(2)
    params, stats, batch = start()
    expected, (new_stats, metrics) = jax.jit(
        jax.grad(functools.partial(of_the_same_model, parts=parts), has_aux=True)
    )(params, stats, batch)
    found, found_stats, found_metrics = gradients(parts)
    assert error(found, expected) < 2e-5
    assert error(found_stats, new_stats) < 1e-6
    np.testing.assert_allclose(found_metrics["loss"], metrics["loss"], rtol=1e-6)


@pytest.mark.slow
def test_statistics_are_those_of_micro_batches_and_not_of_the_batch():
    whole, _, _ = gradients(make_parts(1))
    parts, _, _ = gradients(make_parts(4))
    assert error(parts, whole) > 1e-2


@pytest.mark.slow
def test_devices_do_not_change_the_micro_batches():
    one, one_stats, _ = gradients(make_parts(4))
    eight, eight_stats, _ = gradients(make_parts(4), num_devices=8)
    assert error(eight, one) < 2e-5
    assert error(eight_stats, one_stats) < 1e-5


@pytest.mark.slow
def test_it_takes_less_memory_and_moves_no_images():
    batch = {
        "images": jax.ShapeDtypeStruct((128, 2, SIZE, SIZE, 3), np.uint8),
        "labels": jax.ShapeDtypeStruct((128,), np.int32),
    }

    def compiled(number):
        parts = make_parts(number)
        mesh = parallel.create_mesh()
        state = jax.eval_shape(
            functools.partial(step.init_state, parts, image_size=SIZE),
            jax.random.key(0),
        )
        return compiling.compile_step(parts, mesh).lower(state, batch).compile()

    whole, parts = compiled(1), compiled(8)
    memory = [c.memory_analysis().temp_size_in_bytes for c in (whole, parts)]
    assert memory[1] < 0.5 * memory[0]
    collectives = [line for line in parts.as_text().splitlines() if "all-" in line]
    assert collectives
    assert not [line for line in collectives if f"{SIZE},{SIZE},3]" in line]
