"""Batches whose pairs of views no 32-bit integer counts."""

import jax
import jax.numpy as jnp
import pytest

from simclr_jax import losses, parallel
from simclr_jax.config import resolve
from simclr_jax.configs import imagenet
from simclr_jax.plan import lowering
from simclr_jax.training import build

BATCH_SIZES = (65_536, 262_144)


def resolved(batch_size, **changes):
    """ImageNet's config with a small net: shapes of the batch are what counts."""
    config = imagenet.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": 8,
            "batch.batch_size": batch_size,
            "encoder.depth": 18,
            "encoder.width": 0.0625,
            **changes,
        }
    )
    return resolve.resolve(config, num_examples=1_281_167)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "changes"),
    [
        (65_536, {}),
        (
            262_144,
            {"batch.micro_batch_size": 65_536, "augment.placement": "host_crop"},
        ),
    ],
)
def test_the_whole_step_and_its_diagnostics_trace(batch_size, changes):
    config, mesh = resolved(batch_size, **changes), parallel.create_mesh()
    assert build.make_streaming(config, mesh) == losses.Streaming(mesh)
    step = lowering.lower(config, mesh, num_classes=1000)
    state, metrics, outputs = step.out_info
    assert state.step.shape == metrics["loss"].shape == ()
    assert outputs.z.shape == (2 * batch_size, config.head.output_dim)
    logged = lowering.lower_diagnostics(config, mesh, step).out_info
    assert {"contrastive_accuracy", "effective_rank_h"} <= set(logged)
    assert {value.shape for value in logged.values()} == {()}


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("semi_hard", [False, True])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_traces(name, batch_size, semi_hard):
    config = resolved(batch_size, **{"loss.semi_hard": semi_hard})
    spec = losses.LOSSES[name]
    settings = {key: config.loss[key] for key in spec.settings}
    z = jax.ShapeDtypeStruct((batch_size, 2, 128), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    gradient = jax.eval_shape(
        jax.grad(lambda z, *more: spec.function(z, *more, **settings)),
        z,
        *([labels] if spec.needs_labels else []),
    )
    assert gradient.shape == z.shape


def test_the_rank_of_more_numbers_than_an_int32_counts_traces():
    # ResNet-50 4x: 524,288 views of 8,192 features.
    h = jax.ShapeDtypeStruct((2 * BATCH_SIZES[-1], 8192), jnp.float32)
    assert jax.eval_shape(losses.effective_rank, h).shape == ()
