"""Figures read off programs: written by hand, and compiled by XLA for this machine."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from simclr_jax.plan import hlo, program


def module(entry: str, others: str = "") -> str:
    return (
        f"HloModule test\n\n{others}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{entry}}}\n"
    )


def analyse(entry: str, others: str = "", *, num_devices: int = 4) -> program.Program:
    return program.analyse(module(entry, others), num_devices=num_devices)


def test_an_array_knows_its_bytes_and_its_memory():
    text = module(
        "  %a = (bf16[3,5]{1,0:T(8,128)(2,1)}, /*index=1*/pred[7]{0:T(512)S(1)}, "
        "u32[]{:S(2)}) parameter(0), sharding={replicated}\n"
        "  ROOT %b = f8e4m3fn[2,2]{1,0} bitcast(%a)\n"
    )
    entry = hlo.parse(text).entry
    a, b = entry.instructions["a"], entry.root
    assert [array.bytes for array in a.results] == [30, 7, 4]
    assert [array.on_chip for array in a.results] == [False, True, True]
    assert b.results[0].bytes == 4
    assert (b.opcode, b.operands) == ("bitcast", ("a",))


ADD = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


def test_collectives_of_one_kind_and_size_are_counted_together():
    found = analyse(
        "  %p = f32[8]{0} parameter(0)\n"
        "  %q = bf16[8]{0} convert(%p)\n"
        "  %r1 = (f32[8]{0}, f32[8]{0}) all-reduce(%p, %p), channel_id=1, "
        "replica_groups={{0,1},{2,3}}, to_apply=%add\n"
        "  %r2 = (f32[8]{0}, f32[8]{0}) all-reduce(%p, %p), channel_id=2, "
        "replica_groups={{0,1},{2,3}}, to_apply=%add\n"
        "  %r3 = (f32[8]{0}, bf16[8]{0}) all-reduce(%p, %q), channel_id=3, "
        "replica_groups=[1,4]<=[4], to_apply=%add\n"
        "  %g1 = f32[32]{0} all-gather(%p), channel_id=4, dimensions={0}, "
        "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}\n"
        "  %g2 = (f32[8]{0}, f32[64]{0}) all-gather-start(%p), channel_id=5, "
        "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}\n"
        "  %g3 = f32[64]{0} all-gather-done(%g2)\n"
        "  ROOT %s = f32[8]{0} collective-permute(%p), channel_id=6, "
        "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}\n",
        ADD,
    ).collectives
    described = {(c.kind, c.dtype, c.count, c.bytes, c.devices) for c in found}
    assert described == {
        ("all-reduce", "f32", 2, 64, 2),
        ("all-reduce", "bf16+f32", 1, 48, 4),
        ("all-gather", "f32", 1, 128, 4),
        ("all-gather", "f32", 1, 256, 8),
        ("collective-permute", "f32", 1, 32, 4),
    }
    assert found[0].bytes == 256, "largest total first"


def test_a_collective_that_overlaps_arithmetic_is_counted_once():
    def overlapping(name: str, channel: int) -> str:
        return f"""%{name} (a: f32[8]) -> f32[32] {{
  %a = f32[8]{{0}} parameter(0)
  ROOT %g.{name} = f32[32]{{0}} all-gather(%a), channel_id={channel}, dimensions={{0}}
}}
"""

    fusions = "".join(
        f"  %f{i} = f32[32]{{0}} fusion(%p), kind=kCustom, calls=%{name}\n"
        for i, name in enumerate(("start", "middle", "done", "other"))
    )
    found = analyse(
        f"  %p = f32[8]{{0}} parameter(0)\n{fusions}  ROOT %r = f32[8]{{0}} copy(%p)\n",
        overlapping("start", 1)
        + overlapping("middle", 1)
        + overlapping("done", 1)
        + overlapping("other", 2),
    ).collectives
    assert [(c.kind, c.count, c.bytes) for c in found] == [("all-gather", 2, 128)]


def test_a_fused_all_reduce_of_which_a_part_is_kept_is_a_reduce_scatter():
    (found,) = analyse(
        "  %p = f32[8]{0} parameter(0)\n"
        "  ROOT %f = f32[2]{0} fusion(%p), kind=kCustom, calls=%scatter\n",
        ADD
        + """%scatter (a: f32[8]) -> f32[2] {
  %a = f32[8]{0} parameter(0)
  %all = f32[8]{0} all-reduce(%a), replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[2]{0} dynamic-slice(%all, %zero), dynamic_slice_sizes={2}
}
""",
    ).collectives
    assert (found.kind, found.bytes) == ("reduce-scatter", 32)


def loop(
    start: str, condition: str, step: str, attributes: str = ""
) -> tuple[str, str]:
    """(entry, other computations) of a program with one all-reduce in a loop."""
    state = "(s32[], f32[8]{0}, s32[])"
    entry = f"""  %p = f32[8]{{0}} parameter(0)
  %n = s32[] constant(12)
  %start = s32[] {start}
  %counter = s32[] copy(%start)
  %init = {state} tuple(%counter, %p, %n)
  %loop = {state} while(%init), condition=%condition, body=%body{attributes}
  ROOT %out = f32[8]{{0}} get-tuple-element(%loop), index=1
"""
    others = f"""{ADD}
%next (i: s32[]) -> s32[] {{
  %i = s32[] parameter(0)
  %one = s32[] constant({step})
  ROOT %sum.1 = s32[] add(%i, %one)
}}
%body (s: {state}) -> {state} {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8]{{0}} get-tuple-element(%s), index=1
  %n = s32[] get-tuple-element(%s), index=2
  %r = f32[8]{{0}} all-reduce(%x), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
  %j = s32[] fusion(%i), kind=kLoop, calls=%next
  ROOT %t = {state} tuple(%j, %r, %n)
}}
%condition (s: {state}) -> pred[] {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %bound = s32[] get-tuple-element(%s), index=2
  %five = s32[] constant(5)
  ROOT %go = pred[] compare(%i, {condition}
}}
"""
    return entry, others


@pytest.mark.parametrize(
    ("start", "condition", "step", "trips"),
    [
        ("constant(0)", "%five), direction=LT", 1, 5),
        ("constant(0)", "%five), direction=LE", 1, 6),
        ("constant(0)", "%bound), direction=LT", 1, 12),
        ("constant(0)", "%bound), direction=LT", 5, 3),
        ("constant(9)", "%five), direction=GE", -1, 5),
        ("constant(7)", "%five), direction=LT", 1, 0),
    ],
)
def test_what_a_loop_does_counts_as_often_as_it_runs(start, condition, step, trips):
    found = analyse(*loop(start, condition, step))
    assert found.trip_counts == (trips,)
    assert found.unknown_loops == 0
    assert sum(c.count for c in found.collectives) == trips
    assert found.collective_bytes == 32 * trips


def test_a_count_that_the_program_states_is_believed():
    stated = ', backend_config={"known_trip_count":{"n":"31"},"other":{"n":"2"}}'
    found = analyse(*loop("constant(0)", "%five), direction=LT", 1, stated))
    assert found.trip_counts == (31,)


def test_a_loop_of_unknown_length_is_said_to_be_one():
    found = analyse(*loop("partition-id()", "%five), direction=LT", 1))
    assert (found.trip_counts, found.unknown_loops) == ((), 1)
    assert found.collectives[0].count == 1


def test_loops_in_loops_multiply():
    entry, others = loop("constant(0)", "%five), direction=LT", 1)
    inside = entry.replace("ROOT ", "").replace("%p = f32[8]{0} parameter(0)", "")
    inside = inside.replace("%p", "%x").replace("%n", "%m").replace("=%body", "=%inner")
    body = others[others.index("%body") : others.index("%condition")]
    work = next(line for line in body.splitlines() if "all-reduce" in line)
    outer = body.replace(work, f"{inside}  %r = f32[8]{{0}} copy(%out)")
    found = analyse(
        entry, others.replace(body, body.replace("%body", "%inner") + outer)
    )
    assert found.trip_counts == (5, 5)
    assert found.collectives[0].count == 25


def convolution_flops(size, kernel, outputs, stride, low, lhs_dilate, rhs_dilate):
    """Two for each pair (output, tap) along one axis that meets an input, by hand."""
    held = {position * lhs_dilate for position in range(size)}
    return 2 * sum(
        output * stride + tap * rhs_dilate - low in held
        for output, tap in itertools.product(range(outputs), range(kernel))
    )


@pytest.mark.parametrize(
    "axis",
    [  # size, kernel, outputs, stride, low padding, lhs_dilate, rhs_dilate
        (8, 3, 8, 1, 1, 1, 1),
        (8, 3, 4, 2, 1, 1, 1),
        (7, 7, 5, 2, 3, 1, 1),
        (4, 3, 8, 1, 1, 2, 1),
        (8, 2, 4, 1, -1, 1, 2),
        (8, 8, 3, 1, 1, 1, 1),
        (4, 4, 4, 3, 0, 4, 1),  # a batched product in disguise
        (5, 4, 7, 4, 2, 6, 3),
        (5, 6, 9, 2, 5, 4, 1),
    ],
)
def test_products_with_padding_and_holes_are_no_work(axis):
    size, kernel, outputs, stride, low, lhs_dilate, rhs_dilate = axis
    high = (outputs - 1) * stride + (kernel - 1) * rhs_dilate + 1 - low
    high -= (size - 1) * lhs_dilate + 1
    window = (
        f"window={{size={kernel}x1 stride={stride}x1 pad={low}_{high}x0_0 "
        f"lhs_dilate={lhs_dilate}x1 rhs_dilate={rhs_dilate}x1}}"
    )
    found = analyse(
        f"  %p = f32[2,{size},1,6]{{3,2,1,0}} parameter(0)\n"
        f"  %k = f32[{kernel},1,3,10]{{3,2,1,0}} parameter(1)\n"
        f"  ROOT %c = f32[2,{outputs},1,10]{{3,2,1,0}} convolution(%p, %k), {window}, "
        "dim_labels=b01f_01io->b01f, feature_group_count=2\n"
    )
    assert found.flops == 2 * 3 * 10 * convolution_flops(*axis)
    assert found.mxu_flops == found.flops


@pytest.mark.parametrize(
    ("dtype", "precision", "passes"),
    [
        ("f32", "highest", 6),
        ("f32", "high", 3),
        ("f32", "default", 1),
        ("bf16", "highest", 1),
    ],
)
def test_precise_float32_products_take_several_passes(dtype, precision, passes):
    found = analyse(
        f"  %p = {dtype}[8,16]{{1,0}} parameter(0)\n"
        f"  %k = {dtype}[16,4]{{1,0}} parameter(1)\n"
        f"  ROOT %c = f32[8,4]{{1,0}} convolution(%p, %k), dim_labels=bf_io->bf, "
        f"operand_precision={{{precision},{precision}}}\n"
    )
    assert found.flops == 2 * 8 * 16 * 4
    assert found.mxu_flops == passes * found.flops


FUSED = """%fused (a: f32[100,8], b: f32[8], c: s32[], d: f32[99]) -> () {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %c = s32[] parameter(2)
  %d = f32[99]{0} parameter(3)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%a, %c, %zero), dynamic_slice_sizes={1,8}
  %flat = f32[8]{0} bitcast(%row)
  %sum = f32[8]{0} add(%flat, %b)
  %new = f32[1,8]{1,0} bitcast(%sum)
  %changed = f32[100,8]{1,0} dynamic-update-slice(%a, %new, %c, %zero)
  ROOT %t = (f32[100,8]{1,0}, f32[99]{0}, f32[8]{0}) tuple(%changed, %d, %sum)
}
"""


def test_traffic_is_what_is_read_and_written_and_not_what_is_passed_on():
    found = analyse(
        "  %a = f32[100,8]{1,0} parameter(0)\n"
        "  %b = f32[8]{0:S(1)} parameter(1)\n"
        "  %c = s32[] parameter(2)\n"
        "  %d = f32[99]{0} parameter(3)\n"
        "  ROOT %f = (f32[100,8]{1,0}, f32[99]{0}, f32[8]{0}) "
        "fusion(%a, %b, %c, %d), kind=kLoop, calls=%fused\n",
        FUSED,
    )
    row, index = 32, 4
    # A row and the index read; a row changed and one written.
    assert found.hbm_bytes == row + index + 2 * row
    assert found.all_bytes == found.hbm_bytes + row, "b is read on the chip"


def test_buffers_of_asynchronous_copies_are_counted_once():
    found = analyse(
        "  %p = f32[8]{0} parameter(0)\n"
        "  %s = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%p)\n"
        "  %d = f32[8]{0:S(1)} copy-done(%s)\n"
        "  ROOT %c = f32[8]{0} copy(%d)\n"
    )
    assert found.hbm_bytes == 32 + 32  # read at the start, written at the end
    assert found.all_bytes == found.hbm_bytes + 32 + 32


def test_a_large_batched_product_in_disguise_is_counted_at_once():
    size = 2**17
    found = analyse(
        f"  %p = f32[{size},2,6]{{2,1,0}} parameter(0)\n"
        f"  %k = f32[{size},2,6]{{2,1,0}} parameter(1)\n"
        f"  ROOT %c = f32[{size},2,2]{{2,1,0}} convolution(%p, %k), "
        f"window={{size={size} stride={size - 1} lhs_dilate={size}}}, "
        "dim_labels=0bf_0oi->0bf\n"
    )
    assert found.flops == size * 2 * (2 * 2 * 6)


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile()


def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
        images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_arithmetic_agrees_with_xla_where_there_are_no_loops():
    def loss(images, kernel, matrix):
        return jnp.sum(convolve(images, kernel).reshape(4, -1) @ matrix)

    one = compiled(
        jax.grad(loss, argnums=(0, 1, 2)), (4, 16, 16, 8), (3, 3, 8, 16), (1024, 64)
    )
    found = program.analyse(one.as_text(), num_devices=1)
    # XLA also counts additions and the like.
    assert found.flops == pytest.approx(one.cost_analysis()["flops"], rel=0.02)
    assert found.flops > 2 * 4 * 1024 * 64


def test_a_compiled_scan_counts_all_its_steps():
    def scanned(x, matrix):
        def body(carry, row):
            return carry @ matrix, jnp.sum(row @ matrix)

        return jax.lax.scan(body, x[0], x)

    one = compiled(scanned, (24, 16, 64), (64, 64))
    found = program.analyse(one.as_text(), num_devices=1)
    assert found.trip_counts == (24,)
    assert found.flops == 24 * 2 * (2 * 16 * 64 * 64)
    assert found.flops > 10 * one.cost_analysis()["flops"]
