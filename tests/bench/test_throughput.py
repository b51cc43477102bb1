"""What `bench` measures, and what it says of it."""

import json
import types

import commands
import numpy as np
import pytest

from simclr_jax.bench import stages, throughput
from simclr_jax.bench.throughput import Device, Host
from simclr_jax.configs import smoke
from simclr_jax.data.sources import arrays
from simclr_jax.data.views.composition import PLACEMENTS
from simclr_jax.training import bottleneck, device_views

STAGES = {"read": 1e-4, "crop": 2e-4, "colour": 1e-4, "pack": 1e-4}


def _config(**changes):
    config = smoke.get_config()
    config.image_size = 8
    config.batch.batch_size = 16
    config.update_from_flattened_dict(changes)
    return config


class _Slow(arrays.ArraySource):
    """A source whose reads keep the processor busy for 20 ms."""

    def read(self, indices):
        end = throughput.time.process_time() + 0.02
        while throughput.time.process_time() < end:
            pass
        return super().read(indices)


@pytest.mark.slow
def test_time_counts_for_the_stage_that_takes_it():
    images = np.zeros((64, 8, 8, 3), np.uint8)
    costs = stages.measure(
        _Slow(images, name="slow"),
        device_views.make_composition(_config()),
        seed=0,
        batch_size=16,
        num_views=2,
        compiled=True,
        secs=0.2,
    )
    # One read makes 16 images.
    assert costs["read"] > 0.02 / 16
    for name in ("crop", "colour", "pack"):
        assert 0 <= costs[name] < costs["read"] / 2
    assert "decode" not in costs


def test_a_core_s_rate_is_that_of_all_stages():
    assert Host("host", STAGES).images_per_core_sec == pytest.approx(2000)
    assert Host("accelerator", {}).images_per_core_sec == float("inf")


@pytest.mark.parametrize(
    ("num_cores", "verdict"), [(1, bottleneck.HOST_INPUT), (8, bottleneck.DEVICE)]
)
def test_the_table_says_who_waits(num_cores, verdict):
    hosts = [Host("host", STAGES), Host("accelerator", {}, unavailable="too large")]
    devices = {"host": Device("TPU v9", 2, 6000.0, 30.0)}
    lines = throughput.table(hosts, devices, num_cores=num_cores)
    of_host, of_accelerator = lines[2], lines[3]
    assert of_host.endswith(verdict)
    # 6000 images/s of 2 devices, 2000 of a core.
    assert "6000" in of_host
    assert "1.50" in of_host
    assert of_accelerator == "accelerator  not possible: too large"


def test_words_for_waiting():
    assert bottleneck.of_wait(0.02) == bottleneck.DEVICE
    assert bottleneck.of_wait(0.5) == bottleneck.HOST_INPUT
    line = bottleneck.advice(bottleneck.HOST_INPUT, 0.5)
    assert "Bottleneck: host input" in line
    assert "50%" in line
    assert "keeps up" in bottleneck.advice(bottleneck.DEVICE, 0.0)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_step_is_that_of_training_and_its_first_call_compiles(
    monkeypatch, deterministic
):
    clock, taken, settings = [0.0], iter([30.0, 5.0, *[0.25] * 9]), {}

    def compile_step(parts, **given):
        settings.update(given)

        def step(state, batch):
            clock[0] += next(taken)
            return (state,)

        return step

    monkeypatch.setattr(throughput.compiling, "compile_step", compile_step)
    monkeypatch.setattr(
        throughput.compiling, "compile_init", lambda *_, **__: lambda key: key
    )
    monkeypatch.setattr(
        throughput, "time", types.SimpleNamespace(monotonic=lambda: clock[0])
    )
    config = _config(**{"parallel.deterministic": deterministic})
    source = arrays.ArraySource(np.zeros((32, 8, 8, 3), np.uint8), name="arrays")
    device = throughput.measure_device(config, source, "host", secs=1.0)
    assert settings["deterministic"] is deterministic
    assert (device.compile_secs, device.images_per_sec) == (30.0, 16 / 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["host", "host_crop", "accelerator"])
def test_the_train_step_runs_in_each_mode(placement):
    images = np.zeros((32, 8, 8, 3), np.uint8)
    source = arrays.ArraySource(images, name="arrays")
    config = _config(**{"encoder.width": 0.0625})
    device = throughput.measure_device(config, source, placement, secs=0.1)
    assert device.count == 8
    assert device.images_per_sec > 0


@pytest.mark.slow
def test_the_command_prints_and_writes_all_figures(tmp_path):
    output = tmp_path / "bench.json"
    code, out, err = commands.run(
        "bench",
        "--config=configs/smoke.py",
        "--config.image_size=8",
        "--device=False",
        "--secs=0.1",
        f"--output={output}",
    )
    assert code == 0, err
    for mode in ("host", "host_crop", "accelerator"):
        assert f"\n{mode} " in out
    written = json.loads(output.read_text())
    assert [host["placement"] for host in written["hosts"]] == list(PLACEMENTS)
    assert written["hosts"][0]["stage_secs"]["crop"] > 0


def test_an_unknown_mode_is_named():
    code, _, err = commands.run("bench", "--config=configs/smoke.py", "--modes=gpu")
    assert code == 2
    assert "--modes=gpu: must be some of host, host_crop, accelerator" in err
