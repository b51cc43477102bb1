"""Every study at every scale: its cells are valid, and its findings name cells."""

import pytest
from ml_collections import config_dict

from simclr_jax.errors import ConfigError
from simclr_jax.study import __main__ as command_line
from simclr_jax.study import cells, figures, findings, measures, scales
from simclr_jax.study.studies import STUDIES


@pytest.mark.parametrize("scale", scales.SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_all_cells_resolve_and_findings_name_cells(name, scale):
    study = cells.open_study(name, scale)
    made = cells.expand(study, 1)
    names = [cell.name for cell in made]
    assert len(set(names)) == len(names)
    assert all(
        set(cell) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.+-") for cell in names
    )
    # No two cells have the same config.
    assert len({cell.config_hash for cell in made}) == len(made)
    assert study.figure.kind in figures.KINDS
    assert study.measure in measures.MEASURES
    for finding in study.findings:
        assert sum(term.weight for term in finding.contrast) == 0
        for term in finding.contrast:
            assert any(term.where(cell.point) for cell in made), finding.text
            assert term.metric in study.metrics
        assert finding.text.endswith(".")
        assert "|" not in finding.text


def test_scales_are_what_they_say():
    paper = scales.base_config("paper")
    assert (paper.data.dataset, paper.batch.batch_size) == ("imagenet2012", 4096)
    assert (paper.encoder.depth, paper.schedule.train_epochs) == (50, 100)
    assert paper.optimizer.name == "lars"
    minutes = scales.base_config("minutes", head__num_layers=4)
    assert minutes.head.num_layers == 4
    assert minutes.data.dataset == "cifar10"
    images = 4096 * minutes.schedule.train_epochs
    assert images == 32_768


def test_seeds_and_grid():
    study = cells.open_study("augmentation_pairs", "gpu")
    made = cells.expand(study)
    assert len(made) == 28 * 3
    assert [cell.seed for cell in made[:4]] == [0, 1, 2, 0]
    by_name = {cell.name: cell for cell in made}
    assert by_name["crop-color-seed1"].config.augment.operations == (
        *("crop", "color_jitter", "grayscale"),
    )
    assert by_name["noise-noise-seed0"].config.augment.operations == ("noise",)
    assert by_name["crop-color-seed1"].config.seed == 1


def test_rules_of_the_learning_rate_meet_at_the_largest_batch():
    study = cells.open_study("learning_rate", "paper")
    rates = {
        (c.point["rule"], c.point["batch"]): c.config.optimizer.learning_rate
        for c in cells.expand(study, 1)
        if c.point["optimizer"] == "lars"
    }
    assert rates["linear", "4096"] * 4096 / 256 == pytest.approx(4.8)
    assert rates["sqrt", "4096"] * 4096**0.5 == pytest.approx(4.8)
    # The paper's 0.3 B / 256 and 0.075 sqrt(B).
    assert rates["linear", "256"] == pytest.approx(0.3)
    assert rates["sqrt", "256"] == pytest.approx(0.075)


def test_an_advantage_that_shrinks_is_signed():
    # Of the batch of 512 above 64: -2.6 points after 3 epochs, -1.9 after 12. The gap
    # is smaller, the advantage is not.
    study = cells.open_study("batch_size_epochs", "minutes")
    linear = {("3", "64"): 34.2, ("3", "512"): 31.6, ("12", "64"): 40.2}
    linear["12", "512"] = 38.3
    results = [
        (cell, {"metrics": {"linear": linear[epochs, batch]}})
        for cell in cells.expand(study, 1)
        if (epochs := cell.point["epochs"], batch := cell.point["batch"]) in linear
    ]
    shrinks = study.findings[1]
    assert findings.by_seed(shrinks, results) == [pytest.approx(-2.6 + 1.9)]
    assert shrinks.text == (
        "The advantage of the batch of 512 is smaller after 12 epochs than after 3."
    )


def test_overrides_change_all_cells():
    overrides = ["data.dataset=cifar100", "encoder.width=0.5", "evaluation.knn_k=7"]
    made = cells.expand(cells.open_study("temperature", "minutes", overrides), 1)
    assert {c.config.data.dataset for c in made} == {"cifar100"}
    assert {c.config.encoder.width for c in made} == {0.5}
    assert {c.config.evaluation.knn_k for c in made} == {(7,)}
    assert isinstance(made[0].config, config_dict.ConfigDict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tempratur", "minutes"), "--study=tempratur: must be one of augmentation_p"),
        (("temperature", "days"), "--scale=days: must be one of minutes, gpu, paper"),
        (
            ("temperature", "gpu", ["loss.temperature=1"]),
            "--set=loss.temperature=1: the study temperature sets loss.temperature",
        ),
        (("objectives", "gpu", ["seed=3"]), "sets seed in its cells"),
        (
            ("batch_size_epochs", "gpu", ["schedule.train_steps=500"]),
            "--set=schedule.train_steps=500: would override schedule.train_epochs",
        ),
        (("objectives", "gpu", ["lsos.margin=1"]), "--set=lsos.margin=1: must be KEY"),
        (("objectives", "gpu", ["image_size=big"]), "must be of type int"),
    ],
)
def test_bad_names_and_overrides(arguments, message):
    with pytest.raises(ConfigError) as error:
        cells.open_study(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_config_names_its_cell():
    study = cells.open_study("batch_size_epochs", "gpu", ["batch.micro_batch_size=96"])
    with pytest.raises(ConfigError, match=r"cell 25-128-seed0: .*micro_batch_size=96"):
        cells.expand(study, 1)


def test_help_lists_studies_and_scales():
    text = " ".join(command_line.__doc__.split())
    assert all(name in text for name in (*STUDIES, *scales.SCALES))
