"""What is checked before minutes of compilation, and what is compiled."""

import dataclasses
import types

import jax
import pytest
from compiled_memory import GIB, analysis

from simclr_jax import parallel
from simclr_jax.config import resolve
from simclr_jax.configs import smoke
from simclr_jax.errors import ConfigError
from simclr_jax.plan import (
    lowering,
    plans,
    report,
    step_compiler,
    topologies,
    tpu_compiler,
)
from simclr_jax.training import rematerialization

SLICE = topologies.parse("v5e:2x4")


def make(config=None, *, loss_only=False, num_examples=2000, num_classes=None):
    return step_compiler.make_step_compiler(
        config or smoke.get_config(),
        loss_only=loss_only,
        num_examples=num_examples,
        num_classes=num_classes,
        report=lambda line: None,
    )


def test_a_config_that_pretraining_would_take_passes():
    make().check(SLICE)
    make(loss_only=True, num_examples=None).check(SLICE)


@pytest.mark.parametrize("loss_only", [False, True])
def test_a_batch_that_the_devices_do_not_divide_is_refused(loss_only):
    config = smoke.get_config()
    config.batch.batch_size = 100
    with pytest.raises(ConfigError, match=r"config.batch.batch_size=100: .* 8 devices"):
        make(config, loss_only=loss_only).check(SLICE)


def test_what_pretraining_would_refuse_is_refused():
    config = smoke.get_config()
    config.encoder.depth = 51
    with pytest.raises(ConfigError, match=r"config\.encoder\.depth=51"):
        make(config)
    config = smoke.get_config()
    config.loss.name = "sup_con"
    with pytest.raises(ConfigError, match="needs labels"):
        make(config).check(SLICE)
    make(config, num_classes=18).check(SLICE)
    with pytest.raises(ConfigError, match=r"config\.batch\.batch_size=256"):
        make(num_examples=255).check(SLICE)


def test_a_dataset_of_unknown_size_is_named_with_the_remedy():
    config = smoke.get_config()
    config.data.dataset = "npz:/nowhere.npz"
    with pytest.raises(
        ConfigError, match=r"dataset='npz:/nowhere.npz'.*--num_examples"
    ):
        make(config, num_examples=None)


@pytest.mark.parametrize(
    ("micro_batch_size", "parts", "most", "found"),
    [
        (None, 1, 650, 648),
        (64, 1, 1000, 960),
        (None, 32, 650, 640),
        (64, 32, 1000, 960),
    ],
)
def test_the_largest_batch_suits_devices_micro_batches_and_dataset(
    monkeypatch, micro_batch_size, parts, most, found
):
    compiled = []

    def fake(self, topology, devices, batch_size):
        self._resolve(batch_size)  # refuses what cannot be trained
        compiled.append(batch_size)
        return plans.Plan(
            program_name="train step",
            topology=topology.name,
            chips=topology.chips,
            devices=topology.devices,
            batch_size=batch_size,
            fits=batch_size <= most,
            memory=plans.Memory(1.0),
        )

    monkeypatch.setattr(step_compiler.StepCompiler, "_compile", fake)
    monkeypatch.setattr(topologies, "open_devices", lambda topology: [])
    config = smoke.get_config()
    config.batch.micro_batch_size = micro_batch_size
    config.batch.norm_parts = parts
    compiler = make(config)
    plain = compiler.plan(SLICE)
    assert (plain.batch_size, plain.largest_batch) == (256, None)
    compiled.clear()
    plan = compiler.plan(SLICE, largest_batch=True)
    assert dataclasses.replace(plan, largest_batch=None) == plain
    # No closer than a sixteenth.
    assert found - found / 16 <= plan.largest_batch.batch_size <= found
    assert compiled[0] == 256
    assert len(compiled) == len(set(compiled))
    unit = micro_batch_size or max(8, parts)
    assert all(size % unit == 0 for size in compiled)
    small = make(config, num_examples=300).plan(SLICE, largest_batch=True)
    assert small.largest_batch.too_large is None
    assert small.largest_batch.batch_size == 300 // unit * unit


def test_a_dataset_on_the_accelerator_needs_one_size():
    config = smoke.get_config()
    config.augment.placement = "accelerator"
    config.data.dataset = "imagenet2012"
    compiler = make(config, num_examples=None)
    with pytest.raises(ConfigError, match=r"imagenet2012 are not known to have one"):
        compiler.check(SLICE)
    config.data.dataset = "cifar10"
    compiler = make(config, num_examples=None)
    compiler.check(SLICE)
    assert compiler._dataset_shape() == (50_000, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["accelerator", "host_crop"])
def test_the_step_that_is_planned_makes_the_views(placement):
    config = smoke.get_config()
    config.augment.placement = placement
    config.batch.batch_size = 16
    config.image_size = 8
    config.encoder.depth, config.encoder.width = 10, 0.0625
    resolved = resolve.resolve(config, num_examples=64)
    mesh = parallel.create_mesh()
    lowered = lowering.lower(
        resolved, mesh, num_classes=None, dataset_shape=(64, 32, 32)
    )
    _, inputs = lowered.args_info[0]
    size = config.image_size
    shape = (16, 2, size, size, 3) if placement == "host_crop" else (64, 32, 32, 3)
    assert inputs["images"].shape == shape
    assert ("draws" in inputs) == (placement == "host_crop")
    alone = lowering.lower_views(resolved, mesh, dataset_shape=(64, 32, 32))
    assert alone.out_info["images"].shape == (16, 2, size, size, 3)


@pytest.mark.parametrize(
    ("needs", "level"),
    [
        ({"none": 9, "wide_1": 8}, "none"),
        ({"none": 15.5, "wide_1": None, "wide_2": 13, "wide": 11}, "wide_2"),
        (dict.fromkeys(rematerialization.LEVELS), "blocks"),
        (dict.fromkeys(rematerialization.LEVELS, 15.5), "blocks"),
    ],
)
def test_the_least_rematerialisation_that_fits_is_planned(monkeypatch, needs, level):
    """15.5 of 16 GiB leave too little room; None: the compiler refuses.

    At the last level training takes what the compiler takes.
    """
    compiled = []

    def lower(config, mesh, **_):
        compiled.append(config.parallel.remat)
        return config.parallel.remat

    def compile_program(lowered, label, report):
        needed = needs[lowered]
        if needed is None:
            raise tpu_compiler.DoesNotFit("too large", 20 * GIB, 16 * GIB)
        return types.SimpleNamespace(memory_analysis=lambda: analysis(needed))

    monkeypatch.setattr(lowering, "lower", lower)
    monkeypatch.setattr(tpu_compiler, "compile_program", compile_program)
    monkeypatch.setattr(tpu_compiler, "available_memory", lambda device: 16 * GIB)
    monkeypatch.setattr(topologies, "open_devices", lambda topology: jax.devices()[:1])
    monkeypatch.setattr(
        step_compiler,
        "add_figures",
        lambda plan, *_: dataclasses.replace(plan, fits=True),
    )
    monkeypatch.setattr(
        step_compiler.StepCompiler, "_compile_parts", lambda *_: (None, None)
    )
    plan = make().plan(topologies.parse("v5e:1x1"))
    levels = rematerialization.LEVELS
    assert compiled == [*levels[: levels.index(level) + 1]]
    assert plan.remat == level
    assert plan.fits is (needs[level] is not None)
    assert list(plan.too_large) == compiled[:-1]
    if level == "wide_2":
        assert plan.too_large == {"none": 15.5 * GIB, "wide_1": 20 * GIB}
        notes = report.notes(plan)
        assert "parallel.remat: wide_2, the least that fits" in notes
        assert "none needs 15.5 GiB, wide_1 needs 20 GiB" in notes
    if level == "blocks" and plan.fits:
        notes = report.notes(plan)
        assert "remat: blocks, the last; no step fits (none needs 15.5 GiB" in notes
        assert "blocks needs 15.5 GiB of 16.0 GiB, of which a step may" in notes
        assert "training warns" in notes
