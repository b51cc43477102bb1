"""Convolutions against `nn.Conv` and float64 sums, and each platform's program."""

import functools
import importlib.util
import itertools
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first
from flax import linen as nn

from simclr_jax import parallel
from simclr_jax.models import (
    convolutions,
    cpu_convolutions,
    create_encoder,
    winograd,
)
from simclr_jax.models.convolutions import Conv2d, conv2d, max_pool

# side of the kernel, stride, side of the images
CASES = [
    *itertools.product([1], [1, 2], [1, 4, 7]),
    *itertools.product([3], [1, 2], [1, 2, 3, 4, 7, 8]),
    *itertools.product([7], [2], [2, 8, 13]),
]
NUM_IMAGES, CHANNELS, FILTERS = 4, 6, 5


def draw(size: int, stride: int, side: int) -> tuple[np.ndarray, ...]:
    """float64 images, kernel and gradient of the output.

    Multiples of 2^-6 up to 1: exact in bfloat16, as are sums of their products, which
    are multiples of 2^-12 below 2^10, in float32, whatever the order.
    """
    generator = np.random.default_rng([size, stride, side])
    outputs = (side + 2 * ((size - 1) // 2) - size) // stride + 1
    shapes = (
        # Higher than wide, so that the two cannot be mixed up.
        (NUM_IMAGES, side + 1, side, CHANNELS),
        (size, size, CHANNELS, FILTERS),
        (NUM_IMAGES, side // stride + 1, outputs, FILTERS),
    )
    return tuple(generator.integers(-64, 65, shape) / 64 for shape in shapes)


def by_hand(x, kernel, g, stride):
    """Output and both gradients in float64, from the definition."""
    size = len(kernel)
    padding = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - size) // stride + 1 for n in padded.shape[1:3])
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    dx, dk = np.zeros_like(padded), np.zeros_like(kernel)
    for row, column in itertools.product(range(height), range(width)):
        window = np.s_[
            :,
            row * stride : row * stride + size,
            column * stride : column * stride + size,
        ]
        y[:, row, column] = np.tensordot(padded[window], kernel, 3)
        if g is not None:
            at = g[:, row, column]
            dx[window] += np.tensordot(at, kernel, ([1], [3]))
            dk += np.tensordot(padded[window], at, ([0], [0]))
    inner = np.s_[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]
    return y, dx[inner], dk


def with_gradients(convolve, x, kernel, g):
    y, pull = jax.vjp(convolve, x, kernel)
    return y, *pull(g.astype(y.dtype))


def padded_conv(size, stride, **settings):
    return functools.partial(conv2d, stride=stride, padding=(size - 1) // 2, **settings)


def use_form(monkeypatch, form):
    """'direct', 'gpu': what accelerators compute, on the CPUs that run these tests.

    'tiles': what CPUs compute for more channels and larger images.
    """
    if form == "tiles":
        monkeypatch.setattr(winograd, "_LEAST_SIDE", 1)
        monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 1)
    elif form != "cpu":
        monkeypatch.setattr(
            convolutions,
            "_by_platform",
            lambda *arrays, cpu, direct, gpu=None: (
                gpu if gpu and form == "gpu" else direct
            )(*arrays),
        )


@pytest.fixture
def form(request, monkeypatch):
    use_form(monkeypatch, request.param)
    return request.param


each_form = pytest.mark.parametrize(
    "form", ["direct", "gpu", "cpu", "tiles"], indirect=True
)
each_platform = pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])


def lowered(function, *arguments, platform):
    """The program for a platform, which need not be available."""
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of one image, where the real budget would take all at once."""
    monkeypatch.setattr(cpu_convolutions, "_CHUNK_BYTES", 4)
    monkeypatch.setattr(cpu_convolutions, "_LEAST_TIMES_GRADIENT", 0)
    monkeypatch.setattr(cpu_convolutions, "_LEAST_IMAGES", 1)


@each_form
@pytest.mark.parametrize(("size", "stride", "side"), CASES)
def test_values_and_gradients_are_those_of_the_definition(form, size, stride, side):
    x, kernel, g = draw(size, stride, side)
    want = by_hand(x, kernel, g, stride)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, g)]
    convolve = padded_conv(size, stride)
    got = jax.jit(functools.partial(with_gradients, convolve))(*arrays)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["cpu", "tiles"], indirect=True)
@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 4), (3, 2, 7), (7, 2, 8)])
def test_chunks_add_up_to_the_same(form, size, stride, side):
    x, kernel, g = draw(size, stride, side)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, g)]
    convolve = padded_conv(size, stride)
    compute = functools.partial(with_gradients, convolve)
    assert "length=4" in str(jax.make_jaxpr(compute)(*arrays))  # one image a turn
    for a, b in zip(
        jax.jit(compute)(*arrays), by_hand(x, kernel, g, stride), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "kernel", "settings", "tiled"),
    [
        ((8, 8, 6, 32), (3, 3, 32, 48), {}, True),
        ((8, 7, 56, 64), (3, 3, 64, 64), {}, True),
        ((1, 224, 224, 64), (3, 3, 64, 64), {}, True),
        ((8, 8, 8, 3), (3, 3, 3, 64), {}, False),  # a stem
        ((8, 4, 4, 512), (3, 3, 512, 512), {}, False),
        ((8, 8, 8, 64), (3, 3, 64, 64), {"stride": 2}, False),
        ((8, 8, 8, 64), (3, 3, 64, 64), {"padding": 0}, False),
        ((8, 8, 8, 64), (1, 1, 64, 64), {"padding": 0}, False),
        ((8, 8, 8, 64), (3, 3, 64, 64), {"dtype": jnp.bfloat16}, False),
    ],
)
def test_large_3x3_convolutions_of_float32_are_tiled(shape, kernel, settings, tiled):
    dtype = settings.pop("dtype", jnp.float32)
    settings = {"stride": 1, "padding": 1} | settings
    x = jax.ShapeDtypeStruct(shape, dtype)
    assert cpu_convolutions.is_tiled(x, kernel, **settings) is tiled


@pytest.mark.parametrize(
    ("num_images", "floats", "total", "chunk"),
    [
        (128, 2**15, 0, 32),  # 4 MiB are 2^20 floats
        (128, 2**15 + 1, 0, 16),
        (90, 2**15, 0, 30),  # a divisor
        (128, 2**15, 2**20, 64),  # twice the gradient
        (128, 2**30, 0, 8),  # a part for each of eight devices
        (16, 1, 0, 8),  # always a loop
        (1, 1, 0, 1),
    ],
)
def test_a_chunk_fills_the_budget(num_images, floats, total, chunk):
    assert cpu_convolutions._chunk_size(num_images, floats, total) == chunk


@each_form
@pytest.mark.parametrize(
    ("size", "stride", "side"), first(1, [(3, 1, 4), (1, 2, 7), (3, 2, 2)])
)
def test_a_bfloat16_gradient_is_exact_in_float32_only(form, size, stride, side):
    x, kernel, g = draw(size, stride, side)
    want = by_hand(x, kernel, g, stride)
    arrays = (
        jnp.asarray(x, jnp.bfloat16),
        jnp.asarray(kernel, jnp.float32),
        jnp.asarray(g, jnp.bfloat16),
    )
    errors = {}
    for dtype in convolutions.GRADIENT_DTYPES:
        convolve = padded_conv(size, stride, gradient_dtype=dtype)
        # Not jitted: XLA on CPUs omits the rounding of values that are widened again.
        y, dx, dk = with_gradients(convolve, *arrays)
        assert (y.dtype, dx.dtype, dk.dtype) == (jnp.bfloat16, jnp.bfloat16, "float32")
        # Eight bits, rounded to nearest.
        np.testing.assert_allclose(y.astype(float), want[0], rtol=2**-8, atol=1e-9)
        np.testing.assert_allclose(dx.astype(float), want[1], rtol=2**-8, atol=1e-9)
        errors[dtype] = np.max(np.abs(dk - want[2]) / np.max(np.abs(want[2])))
    if form == "gpu":
        assert errors["float32"] == errors["bfloat16"]
    else:
        assert errors["float32"] == 0
    assert 2**-14 < errors["bfloat16"] < 2**-8


@pytest.mark.parametrize(
    ("platform", "gradient_dtype", "in_program"),
    [
        ("tpu", "float32", "f32"),
        ("tpu", "bfloat16", "bf16"),
        ("cuda", "float32", "bf16"),
        ("rocm", "float32", "bf16"),
    ],
)
def test_kernel_gradients_stay_on_tensor_cores(platform, gradient_dtype, in_program):
    x = jnp.ones((2, 8, 8, 16), jnp.bfloat16)
    kernel, g = jnp.ones((3, 3, 16, 24)), jnp.ones((2, 8, 8, 24), jnp.bfloat16)
    convolve = padded_conv(3, 1, gradient_dtype=gradient_dtype)
    program = lowered(
        functools.partial(with_gradients, convolve), x, kernel, g, platform=platform
    )
    results = re.findall(r"stablehlo\.convolution.*-> tensor<([\dx]+)x(\w+)>", program)
    by_shape = dict(results)
    assert by_shape.pop("3x3x16x24") == in_program
    assert set(by_shape.values()) == {"bf16"}
    assert (
        jax.eval_shape(functools.partial(with_gradients, convolve), x, kernel, g)[
            2
        ].dtype
        == jnp.float32
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_gpus_take_three_colours_as_four_channels(platform):
    x, kernel = jnp.ones((2, 8, 8, 3), jnp.bfloat16), jnp.ones((7, 7, 3, 24))
    g = jnp.ones((2, 4, 4, 24), jnp.bfloat16)
    compute = functools.partial(with_gradients, padded_conv(7, 2))
    program = lowered(compute, x, kernel, g, platform=platform)
    operands = re.findall(
        r"stablehlo\.convolution\(.*: \(tensor<([\dx]+)x\w+>, tensor<([\dx]+)x", program
    )
    forward = ("2x8x8x4", "7x7x4x24") if platform == "cuda" else ("2x8x8x3", "7x7x3x24")
    assert operands[0] == forward
    assert len(operands) == 3


@pytest.mark.parametrize("form", ["gpu"], indirect=True)
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (7, 2)])
def test_the_fourth_channel_changes_nothing(form, size, stride):
    x, kernel, g = draw(size, stride, 8)
    x, kernel = x[..., :3], kernel[:, :, :3]
    want = by_hand(x, kernel, g, stride)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, g)]
    got = with_gradients(padded_conv(size, stride), *arrays)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@each_form
def test_the_kernel_is_rounded_to_the_computation(form):
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    kernel = jnp.full((1, 1, 1, 1), 1 + 2**-7 + 2**-12, jnp.float32)
    assert conv2d(x, kernel)[0, 0, 0, 0] == 1 + 2**-7


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("size", "stride", "use_bias"),
    first(1, [(7, 2, True), (1, 2, True), (3, 1, False)]),
)
@pytest.mark.parametrize("form", ["direct"], indirect=True)
def test_a_layer_is_flax_s(form, size, stride, use_bias, dtype):
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (3, 9, 8, 6))
    init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    mine = Conv2d(5, size, stride, use_bias, dtype, init, "bfloat16")
    flax_s = nn.Conv(
        5,
        (size, size),
        strides=stride,
        padding=(size - 1) // 2,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=init,
    )
    variables = flax_s.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, mine.init(key, x), variables)
    variables = jax.tree.map(lambda p: p + 0.25, variables)  # a bias too

    def run(layer):
        return jax.jit(
            lambda v, x: with_gradients(
                lambda x, v: layer.apply(v, x), x, v, flax_s.apply(variables, x)
            )
        )(variables, x)

    # Both round to `dtype` at the same places.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-6, atol=1e-6
        ),
        run(mine),
        run(flax_s),
    )


@pytest.mark.parametrize(
    ("size", "stride", "side", "as_products"),
    [
        (1, 1, 4, True),
        (1, 2, 4, True),
        (3, 1, 1, True),
        (3, 1, 2, True),
        (3, 2, 4, True),
        (3, 1, 3, False),
        (3, 2, 5, False),
        (7, 1, 6, True),
    ],
)
@each_platform
def test_what_is_slow_on_cpus_is_no_convolution_there(
    platform, size, stride, side, as_products
):
    """Other platforms have three convolutions, and nothing of the form for CPUs."""
    x = jnp.ones((NUM_IMAGES, side, side, CHANNELS))
    kernel = jnp.ones((size, size, CHANNELS, FILTERS))
    convolve = padded_conv(size, stride)
    g = jnp.ones(convolve(x, kernel).shape)
    compute = functools.partial(with_gradients, convolve)
    program = lowered(compute, x, kernel, g, platform=platform)
    direct = platform != "cpu"
    expected = 3 if direct else 0 if as_products else 2
    assert program.count("stablehlo.convolution") == expected
    # No copies of the images for the places of a kernel on accelerators.
    assert ("stablehlo.concatenate" in program) == (not direct and size > 1)
    assert ("stablehlo.dot_general" in program) != direct


@pytest.mark.parametrize(
    "padding",
    [
        pytest.param("SAME", marks=pytest.mark.slow),
        pytest.param(((1, 1), (1, 1)), marks=pytest.mark.slow),
        ((0, 2), (2, 1)),
    ],
)
@pytest.mark.parametrize("side", first(1, [5, 1, 2, 8]))
@each_form
def test_max_pool_is_flax_s_even_where_values_tie(form, padding, side):
    generator = np.random.default_rng(side)
    x = generator.integers(-2, 3, (2, side + 1, side, 3)).astype(np.float32)
    settings = ((3, 3), (2, 2), padding)
    want, want_pull = jax.vjp(lambda x: nn.max_pool(x, *settings), x)
    got, pull = jax.vjp(lambda x: max_pool(x, *settings), x)
    np.testing.assert_array_equal(got, want)
    g = generator.integers(1, 100, got.shape).astype(np.float32)
    np.testing.assert_array_equal(pull(g)[0], want_pull(g)[0])


@each_form
def test_max_pool_keeps_what_is_not_a_number(form):
    for place in itertools.product(range(2), range(2)):
        x = jnp.ones((1, 2, 2, 1)).at[0, *place, 0].set(jnp.nan)
        pooled = max_pool(x, (2, 2), (2, 2), "SAME")
        assert jnp.isnan(pooled).all()


def two_layers(params, x, gradient_dtype="float32"):
    """A strided and an unstrided convolution: mean square of what comes out."""
    for kernel, stride in zip(params, (2, 1), strict=True):
        convolve = padded_conv(3, stride, gradient_dtype=gradient_dtype)
        x = jax.nn.relu(convolve(x, kernel))
    return jnp.mean(jnp.square(x.astype(jnp.float32)))


def layers_and_images(num_images=16):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((3, 3, 4, 8), (3, 3, 8, 8), (num_images, 12, 12, 4))
    *params, x = (
        jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)
    )
    return params, x


@pytest.mark.usefixtures("small_chunks")
@each_form
def test_layers_can_be_computed_again_and_looped_over(form):
    params, x = layers_and_images()
    objective = two_layers
    want = jax.jit(jax.grad(objective))(params, x)

    def looped(params, x):
        def add(total, part):
            return total + jax.checkpoint(objective)(params, part), None

        return jax.lax.scan(add, 0.0, x.reshape(4, 4, *x.shape[1:]))[0] / 4

    got = jax.jit(jax.grad(looped))(params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want
    )
    shapes = jax.eval_shape(jax.grad(looped), params, x)
    assert [s.dtype for s in shapes] == [jnp.float32] * 2


@each_form
def test_images_split_over_devices_stay_where_they_are(form, monkeypatch):
    monkeypatch.setattr(cpu_convolutions, "_CHUNK_BYTES", 0)
    monkeypatch.setattr(cpu_convolutions, "_LEAST_TIMES_GRADIENT", 0)
    params, x = layers_and_images()
    gradients = jax.grad(two_layers)
    mesh = parallel.create_mesh(jax.devices())
    assert mesh.size == 8
    whole, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
    compiled = (
        jax.jit(gradients, in_shardings=(whole, split), out_shardings=whole)
        .lower(params, x)
        .compile()
    )
    moves = ("all-gather", "all-to-all", "collective-permute")
    program = compiled.as_text()
    assert "all-reduce" in program
    assert not [move for move in moves if move in program]
    got = compiled(jax.device_put(params, whole), jax.device_put(x, split))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        got,
        jax.jit(gradients)(params, x),
    )


_COMPILE_FOR_TPU = """
from simclr_jax.plan import topologies as slices
slices.prepare_environment()
import json, re, sys
sys.path.insert(0, {folder!r})
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from simclr_jax import parallel
from test_convolutions import layers_and_images, two_layers

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = parallel.create_mesh(topology.devices)
whole, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
params, x = jax.eval_shape(layers_and_images)
x = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
dtypes = {{}}
for dtype in ("float32", "bfloat16"):
    step = jax.jit(
        jax.grad(lambda p, x: two_layers(p, x, dtype)),
        in_shardings=(whole, split),
        out_shardings=whole,
    )
    program = step.lower(params, x).compile().as_text()
    results = re.findall(r"= (.*) all-reduce(?:-start)?[(]", program)
    dtypes[dtype] = re.findall(r"(\\w+)\\[3,3,\\d+,\\d+\\]", " ".join(results))
print(json.dumps(dtypes))
"""


def test_tpus_sum_gradients_in_the_dtype_asked_for():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the compiler for TPUs, is not installed")
    code = _COMPILE_FOR_TPU.format(folder=str(pathlib.Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    dtypes = json.loads(done.stdout.splitlines()[-1])
    assert dtypes == {"float32": ["f32", "f32"], "bfloat16": ["bf16", "bf16"]}


def encoder_results(depth, noise=0.0):
    """(variables, h, gradients) of a small net with every branch open."""
    images = jax.random.uniform(jax.random.key(1), (8, 32, 32, 3))
    images *= 1 + noise * jax.random.rademacher(jax.random.key(2), images.shape, "f4")
    encoder = create_encoder(depth=depth, width=0.0625)
    variables = jax.jit(lambda *args: encoder.init(*args))(jax.random.key(0), images)
    # The last scale of each block starts at 0, which would hide its convolutions.
    params = jax.tree.map(lambda p: jnp.where(p == 0, 0.1, p), variables["params"])

    def objective(params):
        tree = {**variables, "params": params}
        h, _ = encoder.apply(tree, images, train=True, mutable=["batch_stats"])
        return jnp.mean(h**2), h

    gradients, h = jax.jit(jax.grad(objective, has_aux=True))(params)
    return variables, h, gradients


def relative_errors(a, b):
    """|a - b| / |b| of each leaf."""
    return [
        float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]


# At 32 pixels the groups have 8, 4, 2 and 1 pixels a side.
@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_a_net_is_the_same_in_both_forms(depth, monkeypatch):
    cpu_variables, cpu_h, cpu_gradients = encoder_results(depth)
    use_form(monkeypatch, "direct")
    variables, h, gradients = encoder_results(depth)
    jax.tree.map(np.testing.assert_array_equal, cpu_variables, variables)
    # Both forms round, in all layers and back; the last bit of the images alone changes
    # gradients by 4e-5 to 1.3e-4, by version and settings of XLA.
    _, noisy_h, noisy_gradients = encoder_results(depth, noise=2.0**-23)
    for a, b, noisy in (
        (cpu_h, h, noisy_h),
        (cpu_gradients, gradients, noisy_gradients),
    ):
        floor = max(relative_errors(noisy, b))
        assert 1e-7 < floor < 3e-4
        assert max(relative_errors(a, b)) < 3 * floor


@pytest.mark.parametrize(
    ("platform", "gradient_dtype"),
    first(
        1,
        [
            ("tpu", "bfloat16"),
            ("cpu", "float32"),
            ("cpu", "bfloat16"),
            ("tpu", "float32"),
            *itertools.product(("cuda", "rocm"), convolutions.GRADIENT_DTYPES),
        ],
    ),
)
def test_an_encoder_hands_its_settings_on(platform, gradient_dtype):
    encoder = create_encoder(
        depth=18, width=0.0625, dtype=jnp.bfloat16, gradient_dtype=gradient_dtype
    )
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), images)
    gradients = jax.grad(lambda v, x: encoder.apply(v, x).sum())
    program = lowered(gradients, variables, images, platform=platform)
    direct = platform != "cpu"
    assert ("stablehlo.concatenate" in program) != direct
    assert ("stablehlo.select_and_scatter" in program) == direct
    if direct:
        kernels = re.findall(r"stablehlo\.convolution.*bf16>\) -> .*xf32>", program)
        exact = gradient_dtype == "float32" and platform == "tpu"
        assert len(kernels) == (20 if exact else 0)


def test_an_encoder_refuses_an_unknown_gradient_dtype():
    with pytest.raises(ValueError, match="gradient_dtype='other': must be one of fl"):
        create_encoder(depth=18, gradient_dtype="other")


def test_a_convolution_refuses_an_unknown_gradient_dtype():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    with pytest.raises(ValueError, match="gradient_dtype='other': must be one of"):
        conv2d(x, kernel, gradient_dtype="other")
