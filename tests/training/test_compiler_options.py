"""Compiler options, and errors where a GPU's memory runs out."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_memory import GIB, analysis
from pretraining import pretrain

from simclr_jax import parallel
from simclr_jax.configs import smoke
from simclr_jax.errors import RunFailed
from simclr_jax.models import heads, resnet
from simclr_jax.training import loop, out_of_memory, xla_options
from simclr_jax.training.out_of_memory import explained


def _mesh(platform):
    device = types.SimpleNamespace(platform=platform)
    return types.SimpleNamespace(devices=np.array([device]))


def test_only_gpus_have_options():
    for platform in ("cpu", "tpu"):
        assert not xla_options.of_step(_mesh(platform), deterministic=True)
    fast = xla_options.of_step(_mesh("gpu"), deterministic=False)
    exact = xla_options.of_step(_mesh("gpu"), deterministic=True)
    assert fast["xla_gpu_enable_latency_hiding_scheduler"] is True
    assert set(exact) - set(fast) == {"xla_gpu_deterministic_ops"}


def test_flags_of_the_environment_stay(monkeypatch):
    name = "xla_gpu_enable_latency_hiding_scheduler"
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=false --xla_gpu_deterministic_ops=false")
    options = xla_options.of_step(_mesh("gpu"), deterministic=True)
    assert name not in options
    assert "xla_gpu_deterministic_ops" not in options
    assert "xla_gpu_all_reduce_combine_threshold_bytes" in options


@pytest.mark.parametrize("name", ["encoder", "head"])
def test_weights_drawn_by_a_quickly_compiled_program_are_the_same(name):
    assert not xla_options.of_init(_mesh("gpu")) | xla_options.of_init(_mesh("tpu"))
    inits = {"encoder": resnet.KERNEL_INITS, "head": heads.KERNEL_INITS}[name]

    def draw(key):
        return [init(key, (3, 3, 16, 8), jnp.float32) for init in inits.values()]

    options = xla_options.of_init(_mesh("cpu"))
    assert options == {"xla_backend_optimization_level": 1}
    key = jax.random.key(3)
    quick = jax.jit(draw, compiler_options=options)(key)
    for a, b in zip(quick, jax.jit(draw)(key), strict=True):
        # Equal with XLA's present emitters; tests run with the former ones.
        np.testing.assert_allclose(a, b, rtol=5e-7)


def test_this_version_of_xla_knows_the_options():
    options = xla_options.of_step(_mesh("gpu"), deterministic=True)
    double = jax.jit(lambda x: 2 * x, compiler_options=options)
    assert double(jnp.ones(())) == 2


@pytest.mark.slow
def test_the_key_reaches_the_compiler(monkeypatch, tmp_path):
    class Asked(Exception):
        pass

    def of_step(mesh, *, deterministic):
        raise Asked(deterministic)

    monkeypatch.setattr(xla_options, "of_step", of_step)
    for value in (False, True):
        config = _config(**{"parallel.deterministic": value, "image_size": 8})
        config.encoder.width = 0.0625
        with pytest.raises(Asked, match=str(value)):
            pretrain(config, str(tmp_path / str(value)))


def _config(**changes):
    config = smoke.get_config()
    config.batch.batch_size = 64
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def small_device(monkeypatch):
    """limit(bytes): the devices are GPUs with so much memory."""

    def limit(number):
        device = types.SimpleNamespace(
            device_kind="NVIDIA Tiny",
            platform="gpu",
            memory_stats=lambda: {"bytes_limit": number},
        )
        monkeypatch.setattr(jax, "local_devices", lambda: [device])

    return limit


class _Step:
    """A step that does not fit, with 1 GiB of state and 8 GiB of temporaries."""

    def __init__(self, text="RESOURCE_EXHAUSTED: Out of memory allocating 8589934592"):
        self._text = text

    def __call__(self, *arguments):
        raise jax.errors.JaxRuntimeError(self._text)

    def lower(self, *shapes):
        self.shapes = shapes
        return self

    def compile(self):
        return self

    def memory_analysis(self):
        return analysis(9)


def _said(step, config):
    with pytest.raises(RunFailed) as caught:
        explained(step, config)(jnp.ones((2, 3)))
    return str(caught.value)


def test_what_fits_is_named(small_device):
    small_device(6 * GIB)
    step = _Step()
    message = _said(step, _config(**{"parallel.remat": "none"}))
    assert "\n" not in message
    assert step.shapes[0].shape == (2, 3)
    for part in (
        "out of memory on NVIDIA Tiny (RESOURCE_EXHAUSTED",
        "batch_size=64 needs 9.0 GiB of each device of 6.0 GiB",
        # A half of the temporaries and the state are 5 GiB of the usable 5.4.
        "config.batch.micro_batch_size=32 would need about 5.0 GiB",
        "config.parallel.remat='blocks'",
        "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95",
    ):
        assert part in message, message


def test_only_what_helps_is_named(small_device, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    small_device(GIB // 2)
    changes = {"parallel.remat": "blocks", "batch.micro_batch_size": 32}
    message = _said(_Step(), _config(**changes))
    assert "micro_batch_size" not in message
    assert "remat" not in message
    assert "XLA_PYTHON" not in message


def test_other_errors_stay_as_they_are():
    step = explained(_Step("INTERNAL: something else"), _config())
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: something else"):
        step(jnp.ones(()))


@pytest.mark.parametrize(
    ("batch", "micro", "limit", "expected"),
    [
        (64, None, 6 * GIB, 32),
        (64, 32, 6 * GIB, 16),
        (96, None, 6 * GIB, 48),
        (64, None, 2 * GIB, None),  # eight devices: no part is smaller than eight
        (64, None, int(2.3 * GIB), 8),
    ],
)
def test_micro_batches_divide_batch_and_devices(batch, micro, limit, expected):
    config = _config()
    config.batch.batch_size = batch
    if micro:
        config.batch.micro_batch_size = micro
    assert jax.device_count() == 8
    assert out_of_memory.fitting(config, GIB, 8 * GIB, limit) == expected


@pytest.mark.parametrize(
    ("devices", "parts", "group", "limit", "expected"),
    [
        (1, 1, None, int(1.7 * GIB), 3),
        (1, 1, None, int(1.3 * GIB), None),  # one image is no micro-batch
        (1, 2, None, int(1.7 * GIB), 2),  # 3 fits, but not in two parts
        (1, 4, None, int(2.3 * GIB), 4),  # 6 fits, but not in four
        (2, 3, 1, int(2.7 * GIB), 6),  # 8 fits, but there are six parts
        (2, 8, None, int(3.5 * GIB), 8),  # 12 fits, but not in eight parts
    ],
)
def test_micro_batches_can_be_divided_into_batch_norms_parts(
    monkeypatch, devices, parts, group, limit, expected
):
    config = _config(**{"batch.norm_parts": parts})
    config.batch.norm_group = group
    config.batch.batch_size = 24
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert out_of_memory.fitting(config, GIB, 4 * GIB, limit) == expected


def test_the_compilers_figures_are_those_of_a_real_step(monkeypatch):
    job = loop.pretraining_job(_config(**{"schedule.train_steps": 1}))
    mesh = parallel.create_mesh()
    step = jax.jit(lambda x: (x @ x.T).sum(), in_shardings=parallel.replicated(mesh))

    class Failing:
        lower = step.lower

        def __call__(self, *arguments):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no")

    with pytest.raises(RunFailed, match=r"out of memory on cpu .* needs \d+\.\d GiB"):
        explained(Failing(), job.config)(
            jax.device_put(jnp.ones((512, 512)), parallel.replicated(mesh))
        )
