"""Known networks, times by hand, dataset sizes, the search for the largest batch."""

import math

import jax
import pytest
from cases import first

from simclr_jax import models
from simclr_jax.configs import base, cifar10, stl10
from simclr_jax.errors import ConfigError
from simclr_jax.plan import datasets, model_flops, roofline, search, topologies
from simclr_jax.plan.program import Collective, Program
from simclr_jax.training import arithmetic


# Multiply-adds of the networks up to their pooling, from the literature's 4.09 and 1.81
# GFLOPs at 224 pixels less the classifiers' 2,048,000 and 512,000.
@pytest.mark.parametrize(
    ("depth", "multiply_adds"), first(1, [(18, 1_813_561_344), (50, 4_087_136_256)])
)
def test_the_arithmetic_of_known_networks(depth, multiply_adds):
    model = models.SimCLR(
        encoder=models.create_encoder(depth=depth, stem="imagenet"),
        head=models.create_projection_head(kind="none"),
    )
    found = model_flops.forward_flops(model, image_size=224)
    assert found == 2 * multiply_adds


def test_scans_branches_and_nested_calls_are_arithmetic_too():
    def step(x, _):
        inner = jax.checkpoint(jax.jit(lambda y: y @ y))
        return jax.lax.cond(x[0, 0] > 0, inner, lambda y: y, x), None

    jaxpr = jax.make_jaxpr(lambda x: jax.lax.scan(step, x, length=7))(
        jax.ShapeDtypeStruct((8, 8), "float32")
    )
    assert arithmetic.flops(jaxpr.jaxpr) == 7 * 2 * 8**3


def test_a_step_is_three_forward_passes_and_all_pairs():
    found = model_flops.step_flops(1000.0, num_views=8, output_dim=16)
    assert found == 3 * (8 * 1000 + 2 * 8 * 8 * 16)


def a_program(*collectives: Collective, **figures: float) -> Program:
    settings = {"flops": 0.0, "mxu_flops": 0.0, "hbm_bytes": 0.0, "all_bytes": 0.0}
    return Program(
        **{**settings, **figures},
        collectives=collectives,
        trip_counts=(),
        unknown_loops=0,
    )


def test_times_follow_from_the_published_rates():
    one = a_program(flops=1.0, mxu_flops=197e12, hbm_bytes=819e9, all_bytes=2 * 819e9)
    times = roofline.roofline(one, topologies.parse("v5e:2x2"))
    assert (times.compute, times.memory, times.memory_if_all) == (1.0, 1.0, 2.0)
    assert (times.low, times.high) == (1.0, 2.0)
    # A device is half a chip there.
    times = roofline.roofline(one, topologies.parse("v3:2x2"))
    assert times.compute == pytest.approx(2 * 197 / 123)
    assert times.memory == pytest.approx(2 * 819 / 900)


@pytest.mark.parametrize(
    ("kind", "devices", "shares"),
    [
        ("all-reduce", 4, 2 * 3 / 4),
        ("all-gather", 4, 3 / 4),
        ("reduce-scatter", 4, 3 / 4),
        ("collective-permute", 4, 3 / 4),
        ("all-reduce", 1, 0),
    ],
)
def test_collectives_take_what_their_best_algorithm_sends(kind, devices, shares):
    moved = Collective(kind, "f32", 3, 200e9, devices, (1,))
    times = roofline.roofline(a_program(moved), topologies.parse("v5e:2x2"))
    assert times.collectives == pytest.approx(3 * shares)
    assert times.low == times.collectives
    assert times.high == times.collectives


@pytest.mark.parametrize(
    ("slice_", "kind", "devices", "hops"),
    [
        ("v5e:16x16", "all-reduce", 256, 2 * (8 + 8)),  # two rings of 16
        ("v5e:16x16", "all-gather", 256, 8 + 8),
        ("v5e:16x16", "all-reduce", 4, 2 * (1 + 1)),  # of one process
        ("v5e:16x16", "all-reduce", 16, 2 * (7 + 1)),  # of four in a row
        ("v5e:16x16", "all-reduce", 64, 2 * (8 + 3)),  # two rows, rings of 16
        ("v5e:8x16", "all-reduce", 128, 2 * (7 + 8)),
        ("v5e:4x4", "all-reduce", 1, 0),
        ("v5p:4x4x4", "all-reduce", 64, 2 * (2 + 2 + 2)),
        ("v5p:2x2x4", "collective-permute", 16, 1 + 1 + 3),  # no whole cube
        ("v5p:2x4x4", "all-gather", 32, 1 + 3 + 3),
        ("v4:4x8x8", "all-gather", 512, 2 + 4 + 4),
        ("v5p:4x4x8", "all-gather", 16, 2 + 2),  # a layer
        ("v5p:4x4x8", "all-gather", 8, 2 + 1),
        ("v3:8x8", "all-reduce", 128, 2 * (7 + 7)),  # two devices in a chip
        ("v3:8x8", "all-reduce", 2, 0),
    ],
)
def test_latency_is_a_microsecond_a_hop(slice_, kind, devices, hops):
    moved = Collective(kind, "f32", 3, 1.0, devices, (1,))
    times = roofline.roofline(a_program(moved), topologies.parse(slice_))
    assert times.latency == pytest.approx(3 * hops * 1e-6)
    assert times.high < times.latency or hops == 0


def test_devices_of_one_chip_need_no_links():
    moved = Collective("all-reduce", "f32", 1, 332e9, 2, (1,))
    times = roofline.roofline(a_program(moved), topologies.parse("v3:1x1"))
    assert times.collectives == 0
    moved = Collective("all-reduce", "f32", 1, 332e9, 8, (1,))
    times = roofline.roofline(a_program(moved), topologies.parse("v3:2x2"))
    assert times.collectives == pytest.approx(2 * 3 / 4)


def test_slices_have_chips_and_devices():
    for name, chips, devices in (
        ("v5e:4x4", 16, 16),
        ("v3:8x8", 64, 128),
        ("v5p:2x2x4", 16, 16),
        ("tpu7x:1x1x1", 1, 2),
    ):
        found = topologies.parse(name)
        assert (found.chips, found.devices) == (chips, devices)


@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "v5e", "", "v5e:2x2x1"])
def test_an_unknown_slice_is_refused_with_those_there_are(name):
    with pytest.raises(ConfigError) as caught:
        topologies.parse(name)
    assert f"--topology={name}:" in str(caught.value)
    for generation in topologies.CHIPS:
        assert f"{generation}:{{" in str(caught.value)


@pytest.mark.parametrize(
    ("version", "needle"), [(None, "not installed"), ("0.0.41", "0.0.41 does not go")]
)
def test_a_missing_or_foreign_libtpu_is_named_with_its_remedy(
    monkeypatch, version, needle
):
    real = topologies.importlib.metadata.version

    def fake(name):
        if name != "libtpu":
            return real(name)
        if version is None:
            raise topologies.importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(topologies.importlib.metadata, "version", fake)
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=needle) as caught:
        topologies.check_libtpu()
    assert 'pip install "libtpu==0.0.' in str(caught.value)


@pytest.mark.parametrize("version", ["0.0.42", "0.0.42.1"])
def test_a_fitting_libtpu_is_accepted(monkeypatch, version):
    wanted = topologies.importlib.metadata
    monkeypatch.setattr(
        wanted, "requires", lambda name: ["numpy", "libtpu==0.0.42.*; extra == 'tpu'"]
    )
    monkeypatch.setattr(wanted, "version", lambda name: version)
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: object())
    assert topologies.check_libtpu() == version


def dataset(config, **given):
    settings = {"num_examples": None, "num_classes": None, **given}
    return datasets.describe(config, **settings)


def test_well_known_datasets_need_not_be_here():
    assert dataset(cifar10.get_config()) == datasets.Dataset(50_000, 10, (32, 32))
    assert dataset(stl10.get_config()).num_examples == 100_000
    assert dataset(base.get_config()) == datasets.Dataset(1_281_167, 1000)


def test_what_is_given_counts_and_nothing_is_opened(monkeypatch):
    monkeypatch.setattr(datasets, "_open", None)
    config = cifar10.get_config()
    assert dataset(config, num_examples=77) == datasets.Dataset(77, 10, (32, 32))
    assert dataset(config, num_classes=3) == datasets.Dataset(50_000, 3, (32, 32))
    config.data.dataset = "mine"
    assert dataset(config, num_examples=77) == datasets.Dataset(77, None)


@pytest.mark.parametrize("most", [1, 8, 13, 64, 100, 1000])
@pytest.mark.parametrize("start", [8, 64, 1024])
def test_the_largest_batch_is_found_to_a_sixteenth(most, start):
    tried = []

    def try_batch(batch_size):
        tried.append(batch_size)
        return search.Probe(batch_size, batch_size <= 8 * most, None)

    found = search.largest_batch(try_batch, start=start, unit=8, limit=None)
    assert found.batch_size <= 8 * most < found.too_large
    gap = found.too_large - found.batch_size
    assert gap <= max(8, found.batch_size / 16)
    assert tried[0] == start
    assert len(tried) == len(set(tried)), "nothing is compiled twice"
    assert all(size % 8 == 0 for size in tried)
    assert [probe.batch_size for probe in found.probes] == tried
    assert len(tried) <= 6 + abs(math.log2(most * 8 / start))


def test_the_search_ends_at_the_dataset_and_at_nothing():
    def probe(limit):
        return lambda size: search.Probe(size, size <= limit, None)

    found = search.largest_batch(probe(10**9), start=64, unit=8, limit=999)
    assert (found.batch_size, found.too_large) == (992, None)
    found = search.largest_batch(probe(0), start=64, unit=8, limit=999)
    assert (found.batch_size, found.too_large) == (None, 8)
