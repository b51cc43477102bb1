"""Plans as a table, as notes and as JSON."""

import json

import pytest

from simclr_jax.config import identity
from simclr_jax.configs import base
from simclr_jax.plan import plans, report, search
from simclr_jax.plan.program import Collective, Program
from simclr_jax.plan.roofline import Roofline

GIB = 2**30


def a_plan(**changes) -> plans.Plan:
    settings = {
        "program_name": "train step",
        "topology": "v5e:4x4",
        "chips": 16,
        "devices": 16,
        "batch_size": 4096,
        "fits": True,
        "memory": plans.Memory(
            available=15.75 * GIB,
            peak=14.2 * GIB,
            arguments=0.3 * GIB,
            state=0.21 * GIB,
            batch=0.07 * GIB,
            outputs=0.2 * GIB,
            aliased=0.2 * GIB,
            temporaries=13.9 * GIB,
            code=0.04 * GIB,
        ),
        "compile_seconds": 313.0,
        "program": Program(
            flops=12.6e12,
            mxu_flops=12.7e12,
            hbm_bytes=131e9,
            all_bytes=151e9,
            collectives=(
                Collective("all-reduce", "f32", 1, 100e6, 16, (3, 3, 512, 512)),
                Collective("all-gather", "bf16", 4, 2.5e6, 16, (512, 128)),
            ),
            trip_counts=(64, 8),
            unknown_loops=0,
        ),
        "reported": {"flops": 1.0, "bytes": 2.0},
        "moves_images": False,
        "model_flops": 2e14,
        "roofline": Roofline(0.064, 0.160, 0.185, 0.001, 0.002),
        "step_seconds": (0.16, 0.186),
        "estimated_seconds": 0.3512,
        "training": plans.Training(
            steps=31200,
            epochs=100.0,
            images_per_second=(22022.0, 25600.0),
            hours=(1.387, 1.612),
            chip_hours=(22.19, 25.79),
            model_flops_utilisation=(0.34, 0.4),
        ),
    }
    return plans.Plan(**{**settings, **changes})


MISFIT = a_plan(
    topology="v5e:2x2",
    chips=4,
    fits=False,
    verdict="Ran out of memory",
    memory=plans.Memory(15.75 * GIB, 21.3 * GIB),
    **dict.fromkeys(
        ("program", "reported", "moves_images", "model_flops", "roofline"), None
    ),
    step_seconds=None,
    estimated_seconds=None,
    training=None,
)


def cells(table: str) -> list[dict[str, str]]:
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
    ]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_a_row_says_what_a_slice_gives():
    fitting, misfit = cells(report.table([a_plan(), MISFIT], markdown=True))
    assert fitting == {
        "slice": "v5e:4x4",
        "chips": "16",
        "batch": "4096",
        "GiB a device": "14.2 of 15.75",
        "TFLOP": "12.6",
        "HBM GB": "131",
        "collectives": "5, 110 MB",
        "step ms": "160 to 186",
        "estimate ms": "351",
        "images/s": "22022 to 25600",
        "hours": "1.39 to 1.61",
        "chip-hours": "22.2 to 25.8",
    }
    assert misfit["GiB a device"] == "does not fit: needs 21.3 of 15.75"
    assert misfit["step ms"] == misfit["hours"] == "-"


def test_text_is_aligned():
    lines = report.table([a_plan(), MISFIT]).splitlines()
    assert len({line.index(" ", line.index("of 15.75") + 8) for line in lines[1:]}) == 2
    (column,) = {lines[0].index("TFLOP")}
    assert lines[1][column:].startswith("12.6")
    assert lines[2][column:].startswith("-")
    assert all(line == line.rstrip() for line in lines)


def test_the_loss_alone_has_no_hours():
    plan = a_plan(program_name="loss", training=None, model_flops=None)
    (row,) = cells(report.table([plan], markdown=True))
    assert "hours" not in row
    assert row["step ms"] == "160 to 186"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (search.LargestBatch(5120, 5440, ()), "5120 (5440 does not fit)"),
        (search.LargestBatch(None, 16, ()), "below 16"),
        (search.LargestBatch(9984, None, ()), "9984 (the whole dataset)"),
    ],
)
def test_the_largest_batch_has_a_column(found, text):
    plan = a_plan(largest_batch=found)
    first, second = cells(report.table([plan, MISFIT], markdown=True))
    assert first["largest batch"] == text
    assert second["largest batch"] == "-"


def test_notes_say_where_memory_and_time_go():
    text = report.notes(a_plan(moves_images=True))
    assert "state 0.21, batch 0.07, temporaries 13.9" in text
    assert "arithmetic 64, HBM 160 to 185, collectives 1" in text
    assert "1 all-reduce of 100 MB f32" in text
    assert "images are sent between devices" in text
    assert "loops run 64, 8 times" in text
    assert "100 epochs, 31200 steps; 34 to 40 %" in text
    assert "images are sent" not in report.notes(a_plan())


def test_a_program_that_does_not_fit_comes_with_remedies_that_exist():
    text = report.notes(MISFIT)
    assert "Ran out of memory" in text
    keys = identity.flatten(base.get_config())
    for key, _ in report.REMEDIES:
        assert key in keys
        assert f"--config.{key}" in text
    assert "remat" not in report.notes(
        a_plan(program_name="loss", fits=False, verdict="?")
    )


def test_json_holds_everything():
    found = json.loads(report.as_json([a_plan(), MISFIT], {"jax": "1"}))
    assert found["jax"] == "1"
    assert found["plans"][0]["program"]["collectives"][0]["bytes"] == 100e6
    assert found["plans"][0]["training"]["hours"] == [1.387, 1.612]
    assert found["plans"][1]["fits"] is False
    assert found["plans"][1]["memory"]["peak"] == 21.3 * GIB


def test_what_views_and_diagnostics_take_is_noted():
    part = plans.PartCost(
        compile_seconds=17.8,
        flops=3e8,
        hbm_bytes=0.3e9,
        collectives=7,
        collective_bytes=17e6,
        temporaries=0.0,
        seconds=(4e-4, 5e-4),
    )
    note = report.notes(a_plan(views=part))
    assert "of which the views: 0.4 to 0.5 ms, 0.3 GB of HBM traffic" in note
    assert "logged" not in note
    note = report.notes(a_plan(diagnostics=part))
    assert "steps that are logged, on top: 0.4 to 0.5 ms, 0.3 GB" in note
    assert "7 collectives, 17 MB" in note
    assert "of which the views" not in note
