"""Run directories as a training leaves them, without a training."""

import json
import pathlib

from simclr_jax.configs import smoke
from simclr_jax.runs import directory, metrics_writer

# Names as classes, files and runs may have them.
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "\"'><svg/onload=alert(3)>",
    "<b>bold</b> <a href='javascript:alert(4)'>link</a>",
    "{{ 7 * 7 }} {% raw %} ${8*8} %{x}",
    "&lt;i&gt; &amp;amp;",
    "\u202egnp.exe \u2028 \x1b[2J",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600 \U0001f469\u200d\U0001f52c",
    "long " * 60,
    "surrogate \udcff",
]


def write(
    folder: pathlib.Path, *, steps: int, total: int, labels: bool = True, **config
) -> pathlib.Path:
    """A run that has logged each of `steps` steps; further arguments are config keys.

    Args:
      folder: the run directory.
      steps: with a line.
      total: `schedule.train_steps`.
      labels: with what is logged of images that have labels.
      **config: dotted keys, with '__' for '.'.
    """
    values = smoke.get_config().unlock()
    values.schedule.train_steps = total
    for key, value in config.items():
        group, _, name = key.partition("__")
        values[group][name] = value
    folder.mkdir(parents=True, exist_ok=True)
    directory.write_config(str(folder), values)
    lines = [json.dumps(line(step, labels=labels)) for step in range(1, steps + 1)]
    log(folder).write_text("".join(f"{text}\n" for text in lines))
    return folder


def log(folder: pathlib.Path) -> pathlib.Path:
    """The metrics of a run."""
    return folder / metrics_writer.FILE_NAME


def line(step: int, *, labels: bool = True, first: bool = False, **others) -> dict:
    """What is logged at a step."""
    is_first = first or step == 1
    held_out = {"held_out_knn": 0.3 + step / 1e7} if step % 50 == 0 else {}
    return {
        "step": step,
        "contrastive_accuracy": 1 - 1 / (1 + step / 100),
        "effective_rank_h": 5.0,
        "effective_rank_z": 4.0,
        "gradient_norm": 1 / step,
        "learning_rate": 1e-3,
        "loss": 5 + 1 / step,
        "negative_similarity": 0.1,
        "positive_similarity": 0.8,
        "images_per_sec": 12.8 if is_first else 128.0,
        "input_wait_share": 0.01,
        "bad_records": 0,
        "chance": 5.5,
        "bottleneck": metrics_writer.FIRST_OF_A_START if is_first else "device",
        "health": "healthy",
        **({"probe_accuracy": 0.5, "probe_loss": 1.0, **held_out} if labels else {}),
        **others,
    }
