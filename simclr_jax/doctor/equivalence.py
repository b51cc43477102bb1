"""Whether all devices together compute what one of them does.

A small net takes a step on one device and on all of them, in float32 at the highest
precision of products. Loss, gradient, BatchNorm statistics and update have to agree to
rounding: wrong negatives, local BatchNorm or a gradient summed twice are off by much
more.
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
# A ReLU whose input is within rounding of 0 passes its gradient on one side and not on
# the other, and no precision helps; of three batches some are spared. A wrong program
# is wrong on all.
_SEEDS = (0, 1, 2)
# float32 rounds to 6e-8; sums over a batch, and a net's layers, multiply that.
_TOLERANCE = 1e-4

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far all devices are from one in something.

    Attributes:
      what: loss, gradient, ...
      relative: norm of the difference over the norm of the value.
      tolerance: up to which it is rounding.
    """

    what: str
    relative: float
    tolerance: float = _TOLERANCE

    @property
    def ok(self) -> bool:
        """Whether it is rounding; not where it is no number."""
        return self.relative <= self.tolerance


def compare(mesh: Mesh) -> list[Difference]:
    """Compares a step on all devices with one on the first device of each process.

    Every process of the mesh has to call it.

    Args:
      mesh: from `parallel.create_mesh`.

    Returns:
      The smallest difference over three batches, for each thing compared.
    """
    found: dict[str, list[float]] = {}
    with jax.default_matmul_precision("highest"):
        single = _Step(parallel.create_mesh([jax.local_devices()[0]]), None)
        together = {
            "": _Step(mesh, None),
            ", block-wise loss": _Step(mesh, losses.Streaming(mesh, size=8)),
        }
        for seed in _SEEDS:
            batch = _batch(seed, mesh.size)
            one = single.run(batch)
            for form, step_ in together.items():
                for what, tree in step_.run(batch).items():
                    off = _relative(tree, one[what])
                    found.setdefault(what + form, []).append(off)
    return [Difference(what, min(values)) for what, values in found.items()]


def _batch(seed: int, num_devices: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    number = -(-_LEAST_IMAGES // num_devices) * num_devices
    shape = (number, objectives.NUM_VIEWS, _IMAGE_SIZE, _IMAGE_SIZE, 3)
    return {
        "images": generator.integers(0, 256, shape, np.uint8),
        "labels": generator.integers(0, _NUM_CLASSES, number).astype(np.int32),
    }


class _Step:
    """A compiled step of LARS on one mesh, from weights that no device can change."""

    def __init__(self, mesh: Mesh, streaming: losses.Streaming | None) -> None:
        self._mesh = mesh
        parts = _parts(streaming)
        self._advance = compiling.compile_step(parts, mesh)
        init = compiling.compile_init(parts, mesh, image_size=_IMAGE_SIZE)
        state = init(jax.random.key(0))
        self._params = _draw(state.params)
        # On the host, since a step takes its state's memory.
        state = _fetch(mesh, state)
        self._state = dataclasses.replace(state, params=self._params)

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, Tree]:
        """NumPy trees of what one step gives."""
        if jax.process_count() > 1 and self._mesh.size > 1:
            count = len(batch["images"]) // jax.process_count()
            start = jax.process_index() * count
            batch = {key: array[start : start + count] for key, array in batch.items()}
        state = parallel.put(parallel.replicated(self._mesh), self._state)
        after, metrics = self._advance(state, parallel.shard_batch(self._mesh, batch))
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
    """LARS whose state shows the gradient too, so that one program gives both."""
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
    """Weights by NumPy, so that they cannot depend on devices; none is zero.

    A BatchNorm scale of zero, which blocks start with, would close their branches.
    """
    generator = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        if leaf.ndim == 1:
            return generator.uniform(0.1, 1.0, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1])
        return (generator.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree.map(draw, like)


def _fetch(mesh: Mesh, tree: Any) -> Any:
    """NumPy copies; only arrays over all processes need the others for it."""
    return parallel.fetch(mesh, tree) if mesh.size > 1 else jax.device_get(tree)


def _relative(tree: Tree, reference: Tree) -> float:
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True))
    off = sum(float(np.sum(np.square(np.float64(a) - b))) for a, b in pairs)
    size = sum(float(np.sum(np.square(np.float64(b)))) for _, b in pairs)
    return float(np.sqrt(off / size))
