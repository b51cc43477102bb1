"""A training of a few steps on whatever processes and devices there are.

Run by `test_meshes.py`, alone or as one of several processes; process 0 writes what
happened to an npz file: a checksum of every batch, losses, and all parameters and
BatchNorm statistics after the steps asked for.
"""

import json

import jax
import numpy as np
from absl import app, flags
from jobs import checksum

from simclr_jax import cli, parallel
from simclr_jax.config import resolve
from simclr_jax.configs import smoke
from simclr_jax.parallel import processes
from simclr_jax.training import compiling, input_pipeline, step

_OUTPUT = flags.DEFINE_string("output", None, "The npz file.", required=True)
_OVERRIDES = flags.DEFINE_string("overrides", "{}", "JSON, on top of the smoke config.")
_KEEP = flags.DEFINE_list("keep", ["1"], "Steps after which the state is kept.")
_NOISE = flags.DEFINE_float("noise", 0.0, "Relative noise on the images.")
cli.define_processes()


def noisy(images: np.ndarray, relative: float, seed: int) -> np.ndarray:
    """Images as floats in [0, 1], each pixel changed by so much at most."""
    factors = np.random.default_rng(seed).uniform(-1, 1, images.shape)
    return (images / 255.0 * (1 + relative * factors)).astype(np.float32)


def flat(name: str, tree) -> dict[str, np.ndarray]:
    return {
        f"{name}{jax.tree_util.keystr(path)}": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def main(_) -> None:
    cli.start_processes("unused")
    config = smoke.get_config()
    config.update_from_flattened_dict(json.loads(_OVERRIDES.value))
    source = input_pipeline.open_source(config, config.data.split)
    config = resolve.resolve(config, num_examples=source.num_examples)
    mesh = parallel.create_mesh()
    parts = step.pretraining_parts(config, num_classes=source.num_classes, mesh=mesh)
    advance = compiling.compile_step(parts, mesh)
    state = compiling.compile_init(parts, mesh, image_size=config.image_size)(
        jax.random.key(config.seed)
    )
    arrays = flat("params0", parallel.fetch(mesh, state.params))
    checksums, history = [], []
    batches = input_pipeline.local_batches(config, source, start_step=0)
    for number in range(1, config.schedule.train_steps + 1):
        batch = parallel.shard_batch(mesh, next(batches))
        whole = parallel.fetch(mesh, batch)
        checksums.append(checksum(whole))
        if _NOISE.value:
            images = noisy(whole["images"], _NOISE.value, seed=number)
            batch |= jax.device_put({"images": images}, parallel.batch_sharding(mesh))
        state, metrics, _ = advance(state, batch)
        history.append(float(metrics["loss"]))
        if str(number) in _KEEP.value:
            arrays |= flat(f"params{number}", parallel.fetch(mesh, state.params))
            arrays |= flat(f"stats{number}", parallel.fetch(mesh, state.batch_stats))
    if processes.is_main():
        np.savez(_OUTPUT.value, batches=checksums, loss=history, **arrays)


if __name__ == "__main__":
    app.run(main)
