r"""Runs one of the papers' ablations and draws its figure.

    python -m simclr_jax.study --study=temperature --scale=minutes --workdir=DIR \
        --set=data.data_dir=TFDS_DIR

Every cell of the study's grid is a training in DIR/cells; the same command again, on
this host or on others beside it, runs the cells that are missing. In the end, and with
--only_figures at any time, it writes figure.png, figure.svg, results.csv and
findings.md: which findings of the paper hold at this scale, by 95 % intervals.

Studies: augmentation_pairs, color_strength, depth_width, projection_head,
transformations, objectives, temperature, batch_size_epochs, learning_rate,
head_depth_labels. Scales: minutes (two CPU cores), gpu (hours), paper (ImageNet).
"""

from absl import flags

from simclr_jax import cli

_STUDY = flags.DEFINE_string("study", None, "The study; see above.")
_SCALE = flags.DEFINE_string("scale", "minutes", "minutes, gpu or paper.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the study's cells.")
cli.define_processes()
_SEEDS = flags.DEFINE_integer(
    "seeds", None, "Seeds of each cell; by default 3 or 5, as the study says.", 1, 1000
)
_SET = flags.DEFINE_multi_string(
    "set",
    [],
    "KEY=VALUE for a key of the config that the study does not vary, such as "
    "data.data_dir=DIR or data.dataset=cifar100; may be repeated.",
)
_CELL = flags.DEFINE_multi_string(
    "cell", [], "Run only this cell, a name of --list; may be repeated."
)
_LIST = flags.DEFINE_bool("list", False, "Print the cells and their states, and end.")
_ONLY_FIGURES = flags.DEFINE_bool(
    "only_figures", False, "Write figure, table and text of the cells that are there."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for figure, table and text; by default the workdir."
)


def main() -> None:
    """Runs the command."""
    # Imported here, so that --help does not wait for JAX.
    from simclr_jax.study import command

    for line in command.run(
        command.Request(
            study=_STUDY.value or "",
            scale=_SCALE.value,
            workdir=_WORKDIR.value or "",
            overrides=_SET.value,
            num_seeds=_SEEDS.value,
            chosen=_CELL.value,
            only_list=_LIST.value,
            only_figures=_ONLY_FIGURES.value,
            output=_OUTPUT.value,
        ),
        start=lambda: cli.start_processes(_WORKDIR.value),
    ):
        cli.say(line)


if __name__ == "__main__":
    cli.run(main, required=("study", "workdir"))
