"""Checks that all devices together compute the same train step as one device.

A small net takes a step on one device and on all devices, in float32 with the highest
matmul precision. Loss, gradient, BatchNorm statistics and update must agree up to
rounding: missing negatives, local BatchNorm or a gradient summed twice give much larger
differences. A single accelerator is compared with a CPU.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from simclr_jax import losses, models, optim, parallel
from simclr_jax.models.simclr import Tree
from simclr_jax.training import compiling, objectives, step

_IMAGE_SIZE, _NUM_CLASSES = 16, 4
_LEAST_IMAGES = 32
_TEMPERATURE = 0.5
# A ReLU whose input is within rounding of 0 may pass its gradient on one mesh and not
# on the other, at any precision. This does not happen in every batch, whereas a wrong
# program is wrong on all of them: the smallest difference of three batches counts.
_SEEDS = (0, 1, 2)
# float32 rounds to 6e-8; sums over the batch and the layers of the net multiply this.
_TOLERANCE = 1e-4

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between all devices and one device in one quantity.

    Attributes:
      quantity: loss, gradient, ...
      relative: norm of the difference over the norm of the value.
      tolerance: largest difference that rounding explains.
    """

    quantity: str
    relative: float
    tolerance: float = _TOLERANCE

    @property
    def ok(self) -> bool:
        """Whether rounding explains the difference; False for NaN."""
        return self.relative <= self.tolerance


def compare(mesh: Mesh, reference: Mesh | None = None) -> list[Difference]:
    """Compares a step on all devices with one on one device.

    A collective: every process of the mesh must call it.

    Args:
      mesh: from `parallel.create_mesh`.
      reference: of one device; the first one of each process when None.

    Returns:
      For each quantity, the smallest difference over three batches.
    """
    differences: dict[str, list[float]] = {}
    with jax.default_matmul_precision("highest"):
        if reference is None:
            reference = parallel.create_mesh([jax.local_devices()[0]])
        one_device = _Step(reference, None)
        all_devices = {
            "": _Step(mesh, None),
            ", streaming loss": _Step(mesh, losses.Streaming(mesh, size=8)),
        }
        for seed in _SEEDS:
            batch = _batch(seed, mesh.size)
            expected = one_device.run(batch)
            for form, step_ in all_devices.items():
                for quantity, tree in step_.run(batch).items():
                    relative = _relative(tree, expected[quantity])
                    differences.setdefault(quantity + form, []).append(relative)
    return [Difference(name, min(values)) for name, values in differences.items()]


def _batch(seed: int, num_devices: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    number = -(-_LEAST_IMAGES // num_devices) * num_devices
    shape = (number, objectives.NUM_VIEWS, _IMAGE_SIZE, _IMAGE_SIZE, 3)
    return {
        "images": generator.integers(0, 256, shape, np.uint8),
        "labels": generator.integers(0, _NUM_CLASSES, number).astype(np.int32),
    }


class _Step:
    """A compiled train step on a mesh, from weights that do not depend on the mesh."""

    def __init__(self, mesh: Mesh, streaming: losses.Streaming | None) -> None:
        self._mesh = mesh
        parts = _parts(streaming)
        self._advance = compiling.compile_step(parts, mesh)
        init = compiling.compile_init(parts, mesh, image_size=_IMAGE_SIZE)
        state = init(jax.random.key(0))
        self._params = _draw(state.params)
        # On the host, since the step donates its state.
        state = _fetch(mesh, state)
        self._state = dataclasses.replace(state, params=self._params)

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, Tree]:
        """NumPy trees of the results of one step."""
        if jax.process_count() > 1 and self._mesh.size > 1:
            count = len(batch["images"]) // jax.process_count()
            start = jax.process_index() * count
            batch = {key: array[start : start + count] for key, array in batch.items()}
        state = parallel.put(parallel.replicated(self._mesh), self._state)
        after, metrics, _ = self._advance(
            state, parallel.shard_batch(self._mesh, batch)
        )
        after, metrics = _fetch(self._mesh, (after, metrics))
        return {
            "loss": {"loss": metrics["loss"]},
            "gradient": after.opt_state.gradient,
            "BatchNorm statistics": after.batch_stats,
            "update": jax.tree.map(np.subtract, self._params, after.params),
        }


class _LarsAndGradient(NamedTuple):
    lars: Any
    gradient: Tree


def _lars() -> optax.GradientTransformation:
    """LARS with the gradient in its state, so that one program returns both."""
    inner = optim.lars(0.1, weight_decay=1e-4)

    def update(
        gradient: Tree, state: _LarsAndGradient, params: Tree
    ) -> tuple[Tree, _LarsAndGradient]:
        updates, lars = inner.update(gradient, state.lars, params)
        return updates, _LarsAndGradient(lars, gradient)

    return optax.GradientTransformation(
        lambda params: _LarsAndGradient(inner.init(params), params), update
    )


def _parts(streaming: losses.Streaming | None) -> step.StepParts:
    return step.StepParts(
        model=models.SimCLR(
            encoder=models.create_encoder(depth=18, width=0.125, stem="cifar"),
            head=models.create_projection_head(num_layers=2, output_dim=16),
            num_classes=_NUM_CLASSES,
        ),
        objective=step.Contrastive(
            loss=lambda z: losses.nt_xent(
                z, temperature=_TEMPERATURE, streaming=streaming
            ),
            temperature=_TEMPERATURE,
            streaming=streaming,
        ),
        optimizer=_lars(),
        schedule=lambda step: 0.1,
    )


def _draw(like: Tree) -> Tree:
    """Weights drawn by NumPy, so that they do not depend on devices; none is zero.

    Blocks are initialised with a BatchNorm scale of zero, which would hide them.
    """
    generator = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        if leaf.ndim == 1:
            return generator.uniform(0.1, 1.0, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1])
        return (generator.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree.map(draw, like)


def _fetch(mesh: Mesh, tree: Any) -> Any:
    """NumPy copies; a collective only for arrays over all processes."""
    return parallel.fetch(mesh, tree) if mesh.size > 1 else jax.device_get(tree)


def _relative(tree: Tree, reference: Tree) -> float:
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True))
    difference = sum(float(np.sum(np.square(np.float64(a) - b))) for a, b in pairs)
    size = sum(float(np.sum(np.square(np.float64(b)))) for _, b in pairs)
    return float(np.sqrt(difference / size))
