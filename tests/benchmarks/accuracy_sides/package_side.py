"""This package's commands for a variant, and its views for the other side."""

import argparse
import json
import pathlib
import sys
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = "cifar10:200epochs"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))


def train_command(folder: pathlib.Path, data: pathlib.Path, keys: dict) -> list[str]:
    """`pretrain`, which compiles anew in every run."""
    return [
        *(sys.executable, "-m", "simclr_jax.pretrain", f"--config={CONFIG}"),
        *(f"--workdir={folder / 'run'}", "--compilation_cache="),
        *(f"--config.data.dataset=npz:{data}", "--config.data.split=train"),
        *(f"--config.{key}={value}" for key, value in keys.items()),
    ]


def embed_command(folder: pathlib.Path, data: pathlib.Path, split: str) -> list[str]:
    """`embed` of one split."""
    return [
        *(sys.executable, "-m", "simclr_jax.embed", f"--workdir={folder / 'run'}"),
        *(f"--dataset=npz:{data}", f"--split={split}", "--compilation_cache="),
        *(f"--output={folder / f'features_{split}.npz'}", "--overwrite"),
    ]


def views_command(data: pathlib.Path, keys: dict[str, Any]) -> list[str]:
    """A process that writes all batches of a run to its standard output."""
    return [sys.executable, __file__, f"--data={data}", f"--keys={json.dumps(keys)}"]


def make_config(data: pathlib.Path, keys: dict[str, Any]) -> Any:
    """The resolved config of a run, and its images."""
    from simclr_jax.config import resolve, rules
    from simclr_jax.configs import cifar10
    from simclr_jax.training import input_pipeline

    config = cifar10.get_config(CONFIG.partition(":")[2])
    config.data.dataset = f"npz:{data}"
    config.update_from_flattened_dict(keys)
    rules.validate(config)
    config, source = input_pipeline.open_to_train(config)
    return resolve.resolve(config, num_examples=source.num_examples), source


def views(data: pathlib.Path, keys: dict[str, Any]) -> Any:
    """The batches of a run, uint8 [B, 2, H, W, 3]."""
    from simclr_jax.training import input_pipeline

    config, source = make_config(data, keys)
    for batch in input_pipeline.local_batches(config, source, start_step=0):
        yield batch["images"]


def describe(
    data: pathlib.Path, keys: dict[str, Any], few: pathlib.Path, part: int
) -> dict[str, Any]:
    """As `lightly_side.describe`: what can be compared without training.

    Args:
      data: the images of the run.
      keys: of the config.
      few: the images whose views are made, in some order.
      part: of them; divides their number.
    """
    import jax

    from simclr_jax.training import build

    config, _ = make_config(data, keys)
    model = build.make_model(config, num_classes=None)
    with np.load(data) as arrays:
        some = arrays["train_images"][:512].astype(np.float32) / 255
    params, stats = jax.jit(model.init)(jax.random.key(config.seed), some[:2])
    outputs, _ = jax.jit(model.apply, static_argnames="train")(
        params, stats, some, train=True
    )
    schedule = build.make_schedule(config)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    once = {"batch.batch_size": part, "schedule.train_epochs": 1.0}
    made = list(views(few, {**keys, **once}))
    return {
        "names": [
            jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves
        ],
        "sizes": [x.size for _, x in leaves],
        "stds": [float(np.std(x)) for _, x in leaves],
        "rates": [float(schedule(step)) for step in range(config.schedule.train_steps)],
        "h": np.asarray(outputs.h),
        "z": np.asarray(outputs.z),
        "views": np.concatenate(made),
    }


def main() -> None:
    """Writes batches, until nobody reads them or the run ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--keys", required=True, type=json.loads)
    arguments = parser.parse_args()
    for images in views(arguments.data, arguments.keys):
        sys.stdout.buffer.write(np.ascontiguousarray(images).tobytes())


if __name__ == "__main__":
    main()
