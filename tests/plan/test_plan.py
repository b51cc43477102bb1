"""The command, with the real TPU compiler where it is installed."""

import importlib.util
import json
import subprocess
import sys

import commands
import jax
import pytest

from simclr_jax.plan import tpu_compiler

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed: pip install 'simclr_jax[plan]'",
)
TINY = (
    "--config=configs/smoke.py",
    "--config.image_size=8",
    "--config.encoder.width=0.0625",
)
MIB = 2**20


@needs_libtpu
def test_a_train_step_for_a_slice_that_is_not_there(tmp_path):
    output = tmp_path / "plan.json"
    code, out, err = commands.run(
        "plan",
        *TINY,
        "--topology=v5e:2x2",
        "--config.batch.micro_batch_size=64",
        "--config.schedule.train_steps=3600",
        "--num_examples=2560",
        f"--output={output}",
    )
    assert code == 0, err
    assert "compiling the train step for v5e:2x2, batch 256: done" in err
    assert out.splitlines()[1].startswith("v5e:2x2  4      256")
    told = json.loads(output.read_text())
    assert told["config"]["image_size"] == 8
    assert told["jax"] == jax.__version__
    (plan,) = told["plans"]
    memory, program = plan["memory"], plan["program"]
    assert memory["available"] == 15.75 * 2**30
    # 64 images on each device, two views of 8x8x3; nothing uses labels.
    assert memory["batch"] == 64 * 2 * 8 * 8 * 3
    assert 0.3 * MIB < memory["state"] < MIB
    assert memory["state"] + memory["batch"] < memory["arguments"]
    # The optimiser's step works in place.
    assert memory["state"] < memory["aliased"] <= memory["outputs"]
    # Four micro-batches forward, then four forward and backward.
    assert program["trip_counts"] == [4, 4]
    assert program["unknown_loops"] == 0
    assert plan["reported"]["flops"] < 0.6 * program["flops"]
    # Eight pixels leave much padding, which is no work, but the second pass is.
    assert 0.7 < 4 * program["flops"] / plan["model_flops"] < 1.3
    assert {"all-reduce"} <= {c["kind"] for c in program["collectives"]}
    assert plan["moves_images"] is False
    low, high = plan["step_seconds"]
    assert 0 < low <= high
    assert plan["training"]["epochs"] == 3600 / 10
    assert plan["training"]["hours"] == pytest.approx([low, high])
    assert plan["training"]["chip_hours"] == pytest.approx([4 * low, 4 * high])


@needs_libtpu
@pytest.mark.slow
def test_a_step_of_65536_images_takes_of_a_chip_what_one_of_4096_takes(tmp_path):
    def planned(batch_size, slice_):
        output = tmp_path / f"{batch_size}.json"
        code, _, err = commands.run(
            "plan",
            *TINY,
            f"--config.batch.batch_size={batch_size}",
            f"--topology={slice_}",
            "--num_examples=1281167",
            f"--output={output}",
        )
        assert code == 0, err
        (plan,) = json.loads(output.read_text())["plans"]
        return plan

    small, large = planned(4096, "v5e:4x4"), planned(65_536, "v5e:16x16")
    # What the loss adds, which a net as small as this one does not hide: three products
    # of a chip's 512 rows with all columns.
    added = 3 * 2 * 512 * (2 * 65_536 - 2 * 4096) * 128
    grown = large["program"]["flops"] - small["program"]["flops"]
    assert grown == pytest.approx(added, rel=0.05)
    # The covariance of z is no part of the step.
    sums = {tuple(c["dims"]) for c in large["program"]["collectives"]}
    assert (128, 128) not in sums
    assert large["diagnostics"]["collectives"] > 0


LOSS = (*TINY, "--loss_only", "--config.loss.form=global", "--config.head.output_dim=8")


@needs_libtpu
def test_a_loss_that_fits_one_slice_and_not_the_other(tmp_path):
    output = tmp_path / "plan.json"
    code, out, err = commands.run(
        "plan",
        *LOSS,
        "--config.batch.batch_size=32768",
        "--topology=v2:1x1,v2:8x8",
        f"--output={output}",
    )
    assert code == 0, err
    assert "does not fit: needs 8.06 of 7.48" in out
    assert "exceeds available HBM (7.48G)" in out
    assert "--config.loss.form" in out
    small, large = json.loads(output.read_text())["plans"]
    assert (small["fits"], small["program"], small["roofline"]) == (False, None, None)
    # Half of all 65536^2 similarities in float32, since the chip has two devices.
    assert small["memory"]["peak"] == pytest.approx(2 * 65536**2, rel=0.01)
    assert large["fits"]
    assert large["devices"] == 128
    products = 3 * 2 * 65536**2 * 8 / 128
    assert large["program"]["flops"] == pytest.approx(products, rel=0.01)
    assert large["program"]["hbm_bytes"] > 4 * 65536**2 / 128
    assert large["training"] is None


@needs_libtpu
def test_a_plan_that_fits_nowhere_ends_with_1():
    code, out, err = commands.run(
        "plan",
        *LOSS,
        "--config.batch.batch_size=65536",
        "--topology=v5e:1x1",
        "--markdown",
    )
    assert code == 1
    assert err.splitlines()[-1] == "error: the program fits none of the slices"
    _, _, row = out.splitlines()
    assert "does not fit: needs 64" in row


@needs_libtpu
@pytest.mark.slow
def test_the_largest_batch_with_the_real_compiler(tmp_path):
    output = tmp_path / "plan.json"
    code, out, err = commands.run(
        "plan",
        *LOSS,
        "--config.batch.batch_size=32768",
        "--topology=v2:1x1",
        "--largest_batch",
        f"--output={output}",
    )
    # What was asked for does not fit, but the answer is there.
    assert code == 1, err
    found = json.loads(output.read_text())["plans"][0]["largest_batch"]
    largest, too_large = found["batch_size"], found["too_large"]
    assert f"{largest} ({too_large} does not fit)" in out
    # The similarities of 2B views take 8 B^2 bytes on each of the two devices.
    available = 7.48 * 2**30
    assert 8 * largest**2 < available < 1.1 * 8 * too_large**2
    assert too_large - largest <= largest / 16


@needs_libtpu
def test_the_compiler_knows_every_slice_and_its_devices():
    program = """
from simclr_jax.plan import topologies
topologies.check_libtpu()
topologies.prepare_environment()
from simclr_jax.plan import tpu_compiler
for generation, shapes in topologies.SHAPES.items():
    for shape in shapes:
        topology = topologies.parse(f"{generation}:{shape}")
        devices = topologies.open_devices(topology)
        assert len(devices) == topology.devices, (topology, len(devices))
    print(generation, tpu_compiler.available_memory(devices[0]) / 2**30)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    available = dict(line.split() for line in done.stdout.splitlines())
    # Of 8, 16, 32 and 96 GiB a device, less than 1 GiB is the system's.
    for generation, size in {"v2": 8, "v3": 16, "v4": 16, "v5e": 16, "v6e": 32}.items():
        assert size - 1 < float(available[generation]) < size


BAD_INPUTS = {
    "unknown slice": (["--topology=v5e:3x3"], ["--topology=v5e:3x3", "v5e:{1x1,2x2"]),
    "no slice": ([], ["--topology must be given"]),
    "output that cannot be written": (
        ["--topology=v5e:2x2", "--num_examples=500", "--output=/nowhere/plan.json"],
        ["--output=/nowhere/plan.json"],
    ),
}


@needs_libtpu
def test_bad_inputs_end_with_one_line_that_names_them():
    started = [
        (name, needles, commands.start("plan", *TINY, *arguments))
        for name, (arguments, needles) in BAD_INPUTS.items()
    ]
    problems = []
    for name, needles, process in started:
        out, err = process.communicate(timeout=300)
        one_line = err.startswith("error: ") and err.count("\n") == 1
        named = all(needle in err for needle in needles)
        if process.returncode != 2 or out or not one_line or not named:
            problems.append((name, process.returncode, err[-500:]))
    assert not problems


def test_slices_are_listed_without_anything_else():
    code, out, err = commands.run("plan", "--list_topologies")
    assert code == 0, err
    assert "v5e:{1x1,2x2,2x4,4x4,4x8,8x8,8x16,16x16}" in out.splitlines()


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (64.19G) exceeds available HBM (15.75G).",
            64.19,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.30G of "
            "15.75G hbm. Exceeded hbm capacity by 5.55G.\n\nTotal hbm usage >= 21G:",
            21.3,
            15.75,
        ),
    ],
)
def test_a_verdict_keeps_the_compilers_figures(message, needed, available):
    verdict = tpu_compiler.read_verdict(message)
    assert verdict.needed == pytest.approx(needed * 2**30)
    assert verdict.available == pytest.approx(available * 2**30)
    assert "\n" not in verdict.words
    assert verdict.words.startswith("Ran out of memory")


def test_other_errors_are_no_verdict():
    assert tpu_compiler.read_verdict("INTERNAL: hbm") is None
    assert tpu_compiler.read_verdict("RESOURCE_EXHAUSTED: scoped vmem") is None
    unclear = tpu_compiler.read_verdict("RESOURCE_EXHAUSTED: HBM is full")
    assert (unclear.needed, unclear.available) == (None, None)


def test_a_long_compilation_shows_that_it_goes_on(monkeypatch):
    monkeypatch.setattr(tpu_compiler, "_EVERY_SECONDS", 0.01)
    lines = []

    class Slow:
        def compile(self):
            while len(lines) < 3:
                pass
            return "program"

    assert tpu_compiler.compile_program(Slow(), "this", lines.append) == "program"
    assert lines[0] == "this ... 0:00"
