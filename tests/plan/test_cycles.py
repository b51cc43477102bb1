"""The compiler's estimate, read off programs that were written by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from ml_collections import config_dict

from simclr_jax.plan import cycles, figures, plans, program, report, topologies
from simclr_jax.training import build, divergence

NETWORK = "jit(train_step)/jvp(_Network)/encoder"
BACKWARD = "jit(train_step)/transpose(jvp(_Network))"


def line(name, opcode, cost, op_name, *, root=False, called=""):
    start = "ROOT " if root else ""
    called = f", calls=%{called}" if called else ""
    operands = "%p, %p" if opcode == "dot" else "%p"
    return (
        f"  {start}%{name} = f32[8]{{0}} {opcode}({operands}){called}, "
        f'metadata={{op_name="{op_name}" stack_frame_id=1}}, '
        f'backend_config={{"window_config":{{"estimated_cycles":"{cost}"}}}}\n'
    )


def fused(name, *opcodes):
    """A computation for a fusion, whose instructions carry cycles that do not count."""
    lines = "  %p = f32[8]{0} parameter(0)\n" + "".join(
        line(f"{name}.{i}", opcode, 1_000_000, "x", root=i == len(opcodes) - 1)
        for i, opcode in enumerate(opcodes)
    )
    return f"%{name} (p: f32[8]) -> f32[8] {{\n{lines}}}\n\n"


LOOP = (
    "%condition (p: (s32[])) -> pred[] {\n  %p = (s32[]) parameter(0)\n"
    "  ROOT %c = pred[] constant(true)\n}\n\n"
    "%body (p: (s32[])) -> (s32[]) {\n  %p = (s32[]) parameter(0)\n"
    + line("b", "negate", 100, "jit(train_step)/views/while/body/neg")
    + "  ROOT %t = (s32[]) tuple(%p)\n}\n\n"
)
TEXT = (
    "HloModule test\n\n"
    + fused("sums", "multiply", "reduce")
    + fused("product", "dot", "add")
    + fused("inner", "copy")
    + "%outer (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0} parameter(0)\n"
    "  ROOT %o = f32[8]{0} fusion(%p), calls=%inner\n}\n\n"
    + LOOP
    + "ENTRY %main (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0} parameter(0)\n"
    + line("a", "fusion", 40, f"{NETWORK}/stem/bn1/add", called="sums")
    + line("d", "fusion", 7, f"{BACKWARD}/encoder/group2/block0/x", called="product")
    + line("e", "fusion", 5, f"{BACKWARD}/encoder/group2/block1/x", called="product")
    + line(
        "f",
        "fusion",
        11,
        f"{BACKWARD}/encoder/group1/block0/rematted_computation/bn1/mul",
        called="sums",
    )
    + line("g", "fusion", 3, "jit(train_step)/optimizer/mul", called="outer")
    + line("h", "fusion", 2, "jit(train_step)/jvp()/exp", called="sums")
    + line("i", "copy", 1, "jit(train_step)/add")
    + "  %n = f32[8]{0} negate(%p)\n"
    "  %w = (s32[]) while(%p), condition=%condition, body=%body, "
    'backend_config={"known_trip_count":{"n":"6"}}\n'
    "  ROOT %z = f32[8]{0} bitcast(%p)\n}\n"
)


def test_cycles_are_summed_by_place_and_times_their_loops():
    found = program.analyse(TEXT, num_devices=1)
    assert [dataclasses.astuple(cost) for cost in found.costs] == [
        ("views", "", "element-wise", 600),
        ("stem", "forward", "element-wise", 40),
        ("group2", "backward", "convolution", 12),
        ("group1", "recomputed", "element-wise", 11),
        ("optimizer", "", "copy", 3),
        ("loss", "forward", "element-wise", 2),
        ("other", "", "copy", 1),
    ]
    assert found.cycles == 669
    assert cycles.by(found.costs, "kind") == {
        "element-wise": 653,
        "convolution": 12,
        "copy": 4,
    }


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("encoder/stem/bn1", "stem"),
        ("encoder/group3/block1", "group3"),
        ("head", "head"),
    ],
)
def test_the_pass_that_embeds_micro_batches_is_forward(place, part):
    name = f"jit(train_step)/while/body/closed_call/_Network/{place}/mul"
    text = TEXT.replace(f"{NETWORK}/stem/bn1/add", name)
    (cost,) = (c for c in program.analyse(text, num_devices=1).costs if c.cycles == 40)
    assert (cost.part, cost.phase) == (part, "forward")


def plan(text, topology):
    found = program.analyse(text, num_devices=1)
    chip = topologies.parse(topology).chip
    return plans.Plan(
        program_name="train step",
        topology=topology,
        chips=1,
        devices=1,
        batch_size=2,
        fits=True,
        memory=plans.Memory(1e9),
        program=found,
        estimated_seconds=figures.estimated_seconds(found, chip),
    )


def test_the_clock_turns_cycles_into_milliseconds():
    made = plan(TEXT.replace('"40"', '"3005371"'), "v5e:1x1")
    # 197 TFLOP/s of four units of 128 x 128, two operations each: 1.503 GHz.
    assert made.estimated_seconds == pytest.approx(3_006_000 / 1.503e9, rel=1e-3)
    table = report._estimate(made).splitlines()
    assert table[0] == "the compiler's estimate, ms:"
    assert table[1].split() == [
        *("all", "forward", "backward", "recomputed"),
        *("convolution", "element-wise", "copy"),
    ]
    assert table[2].split() == ["stem", "2", "2", "0", "0", "0", "2", "0"]
    assert table[-1].split()[:3] == ["all", "2", "2"]


def test_what_is_not_known_is_said():
    assert "million cycles" in report._estimate(plan(TEXT, "v6e:1x1"))
    silent = TEXT.replace("estimated_cycles", "nothing")
    assert "carries no estimate" in report._estimate(plan(silent, "v5e:1x1"))


def test_the_step_names_its_parts():
    """The names by which the estimate finds them are in the lowered program."""
    optimizer = build.make_optimizer(
        config_dict.create(
            name="sgd",
            weight_decay=0.1,
            decayed="kernels",
            momentum=0.9,
            nesterov=False,
            clip_norm=None,
        ),
        lambda step: 0.1,
    )
    params = {"kernel": jnp.ones((2, 2))}

    def update(state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), divergence.norms(params, {}, {})

    lowered = jax.jit(update).lower(optimizer.init(params))
    text = lowered.as_text(debug_info=True)
    assert "jit(update)/optimizer/" in text
    assert "jit(update)/diagnostics/" in text
