r"""Estimates the cost of a config on TPU slices; no TPU is needed.

    python -m simclr_jax.plan --config=imagenet:50x1 \
        --topology=v5e:4x4,v5e:16x16 --output=plan.json

Compiles the train step with the TPU compiler (`.venv/bin/pip install -e ".[plan]"`) and
reports memory, arithmetic, collectives, and by published peak rates the shortest
possible step and run. `docs/plan.md` explains the columns. The exit code is 1 where the
program fits none of the slices.
"""

import logging
import os
import pathlib

from absl import flags

from simclr_jax import cli
from simclr_jax.errors import ConfigError, InvalidInput, RunFailed
from simclr_jax.plan import topologies

# Not __name__, which is __main__ when this file is run.
_LOG = logging.getLogger("simclr_jax.plan")

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_list(
    "topology", None, "One or more TPU slices such as v5e:4x4; comma-separated."
)
_LIST_TOPOLOGIES = flags.DEFINE_bool(
    "list_topologies", False, "Only print the names of all slices."
)
_OUTPUT = flags.DEFINE_string("output", None, "File for all figures, as JSON.")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "Print only a table, in Markdown.")
_LOSS_ONLY = flags.DEFINE_bool(
    "loss_only", False, "The loss and its gradient only: seconds instead of minutes."
)
_LARGEST_BATCH = flags.DEFINE_bool(
    "largest_batch", False, "Also look for the largest batch that fits, by bisection."
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples",
    None,
    "Training images, where the dataset is neither well known nor here.",
    lower_bound=1,
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Classes of the labels, likewise.", lower_bound=1
)


def main() -> None:
    """Runs the command."""
    if _LIST_TOPOLOGIES.value:
        print(topologies.describe_all().replace("; ", "\n"))
        return
    for flag in (_CONFIG, _TOPOLOGY):
        if not flag.value:
            raise ConfigError(f"flag --{flag.name} must be given")
    slices = [topologies.parse(name) for name in dict.fromkeys(_TOPOLOGY.value or ())]
    libtpu = topologies.check_libtpu()
    topologies.prepare_environment()
    # Imported here, after what JAX must find in the environment.
    from simclr_jax.plan import report, step_compiler

    compiler = step_compiler.make_step_compiler(
        _CONFIG.value,
        loss_only=_LOSS_ONLY.value,
        num_examples=_NUM_EXAMPLES.value,
        num_classes=_NUM_CLASSES.value,
        report=_LOG.info,
    )
    for topology in slices:
        compiler.check(topology)
    _check_writable(_OUTPUT.value)
    plans = []
    for topology in slices:
        plans.append(compiler.plan(topology, largest_batch=_LARGEST_BATCH.value))
        if _OUTPUT.value:
            text = report.as_json(plans, compiler.about(libtpu))
            pathlib.Path(_OUTPUT.value).write_text(text)
    print(report.table(plans, markdown=_MARKDOWN.value))
    if not _MARKDOWN.value:
        print("", *map(report.notes, plans), report.NOTE, sep="\n")
    if not any(plan.fits for plan in plans):
        raise RunFailed("the program fits none of the slices")


def _check_writable(path: str | None) -> None:
    """Before minutes of compilation."""
    if path is None:
        return
    there = os.path.exists(path)
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise InvalidInput(f"--output={path}: cannot be written ({error})") from error
    if not there:
        os.remove(path)


if __name__ == "__main__":
    cli.run(main)
