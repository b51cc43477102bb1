"""Gradient accumulation with the exact gradient of the whole batch (Gao et al., 2021).

Plain gradient accumulation would compare views inside a micro-batch only. Here a first
pass embeds all micro-batches without keeping activations, the loss and its gradient
with respect to the outputs are taken over the whole batch, and a second pass replays
each micro-batch to carry that gradient back into the parameters.

Loss and gradient are exactly those of the whole batch, for a model whose BatchNorm
takes its statistics over a micro-batch on all devices together: 2M views for M images
in a micro-batch. With running statistics (frozen BatchNorm) that is the whole-batch
model itself. The running statistics move once a step, by the mean over micro-batches;
frozen ones keep every bit.

Image p of the batch belongs to micro-batch p mod n. So every device has its share of
every micro-batch, no image moves between devices, and the assignment does not depend on
how many there are.
"""

from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax.models.simclr import Outputs, SimCLR, Tree
from simclr_jax.training.objectives import Batch, Metrics, Objective, as_float


def gradients(
    model: SimCLR,
    objective: Objective,
    params: Tree,
    batch_stats: Tree,
    batch: Batch,
    *,
    num_micro_batches: int,
) -> tuple[Tree, Tree, Metrics, Outputs]:
    """`step.gradients` in two passes over micro-batches.

    Args:
      model: encoder, head and optional classifier.
      objective: the function to minimise.
      params: the model's.
      batch_stats: the model's, before the step.
      batch: as in `train_step`; B divisible by `num_micro_batches`.
      num_micro_batches: parts in which the model sees the batch.

    Returns:
      (gradients, new statistics, metrics, outputs).
    """
    number = num_micro_batches
    images = batch["images"].reshape(-1, number, *batch["images"].shape[1:])

    def apply(params: Tree, index: jax.Array) -> tuple[Outputs, Tree]:
        part = jax.lax.dynamic_index_in_dim(images, index, axis=1, keepdims=False)
        return model.apply(params, batch_stats, as_float(part), train=True)

    def embed(sums: tuple[Tree, Tree], index: jax.Array) -> tuple[Any, Outputs]:
        mean, moved = sums
        outputs, new_stats = apply(params, index)
        mean = jax.tree.map(lambda m, new: m + new / number, mean, new_stats)
        moved = jax.tree.map(
            lambda any_, new, old: any_ | (new != old), moved, new_stats, batch_stats
        )
        return (mean, moved), outputs

    def replay(total: Tree, step: tuple[jax.Array, Outputs]) -> tuple[Tree, None]:
        index, cotangents = step
        _, pull_back = jax.vjp(lambda params: apply(params, index)[0], params)
        (gradient,) = pull_back(cotangents)
        return jax.tree.map(jnp.add, total, gradient), None

    indices = jnp.arange(number)
    zeros = jax.tree.map(jnp.zeros_like, batch_stats)
    nowhere = jax.tree.map(lambda x: jnp.zeros_like(x, bool), batch_stats)
    (mean, moved), parts = jax.lax.scan(embed, (zeros, nowhere), indices)
    # The sum of n parts of a number is not always that number: frozen statistics stay.
    new_stats = jax.tree.map(jnp.where, moved, mean, batch_stats)
    views = objective.num_views
    outputs = _in_batch_order(parts, views)
    (cotangents, direct), metrics = jax.grad(objective, argnums=(0, 1), has_aux=True)(
        outputs, params, batch
    )
    total, _ = jax.lax.scan(
        replay, direct, (indices, _by_micro_batch(cotangents, number, views))
    )
    return total, new_stats, metrics, outputs


def _in_batch_order(outputs: Any, num_views: int) -> Any:
    """[n, M*V, ...] by micro-batch -> [B*V, ...], view v of image p in row p*V + v."""

    def reorder(x: jax.Array) -> jax.Array:
        views = x.reshape(len(x), -1, num_views, *x.shape[2:])
        return views.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(reorder, outputs)


def _by_micro_batch(outputs: Any, number: int, num_views: int) -> Any:
    """The inverse of `_in_batch_order`."""

    def reorder(x: jax.Array) -> jax.Array:
        views = x.reshape(-1, number, num_views, *x.shape[1:])
        return views.swapaxes(0, 1).reshape(number, -1, *x.shape[1:])

    return jax.tree.map(reorder, outputs)
