"""Which side of a run waits for the other: the input pipeline or the devices."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.bench import stages
from simclr_jax.config import resolve, rules
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import DataError
from simclr_jax.training import (
    bottleneck,
    compiling,
    device_views,
    input_pipeline,
    objectives,
    pixel_moments,
    rematerialization,
    step,
)


@dataclasses.dataclass(frozen=True)
class Host:
    """What the input pipeline of one place costs.

    Attributes:
      placement: 'host', 'host_crop' or 'accelerator'.
      stage_secs: processor seconds an image, with all its views, by stage.
      unavailable: why there is no such mode for this dataset; None if there is.
    """

    placement: str
    stage_secs: Mapping[str, float]
    unavailable: str | None = None

    @property
    def images_per_core_sec(self) -> float:
        """Images/s of one core; infinite where the host computes none."""
        total = sum(self.stage_secs.values())
        return 1.0 / total if total else float("inf")


@dataclasses.dataclass(frozen=True)
class Device:
    """The train step with views that are ready.

    Attributes:
      kind: of the devices.
      count: of all devices of this process.
      images_per_sec: of all of them together.
      compile_secs: until the first step ends, so with one step.
    """

    kind: str
    count: int
    images_per_sec: float
    compile_secs: float


def measure_hosts(
    config: config_dict.ConfigDict, source: Source, *, secs: float
) -> list[Host]:
    """The input pipeline of all placements where views can be made.

    Args:
      config: valid.
      source: the training images, in memory if they fit.
      secs: to spend on each stage.
    """
    made_of = device_views.make_composition(config)
    costs = stages.measure(
        source,
        made_of,
        seed=config.seed,
        batch_size=min(config.batch.batch_size, source.num_examples),
        num_views=objectives.NUM_VIEWS,
        compiled=input_pipeline.use_compiled_views(config),
        secs=secs,
    )
    crops: dict[str, float] = {
        name: costs[name] for name in ("read", "decode", "crop") if name in costs
    }
    split = {**crops, "pack": costs["pack"]}
    nothing: dict[str, float] = {}
    why = None
    try:
        input_pipeline.hold_in_memory(_placed(config, "accelerator"), source)
    except DataError as error:
        why = str(error).partition(": ")[2]
    return [
        Host("host", costs),
        Host("host_crop", split),
        Host("accelerator", nothing, unavailable=why),
    ]


def _placed(config: config_dict.ConfigDict, placement: str) -> config_dict.ConfigDict:
    config = config.copy_and_resolve_references()
    config.augment.placement = placement
    return config


def measure_device(
    config: config_dict.ConfigDict, source: Source, placement: str, *, secs: float
) -> Device:
    """Runs the train step of a config again and again on one batch.

    Args:
      config: valid.
      source: the training images.
      placement: where views are computed.
      secs: how long to measure.
    """
    config = _placed(config, placement)
    config = pixel_moments.resolve(config, source)
    mesh = parallel.create_mesh()
    parts = step.pretraining_parts(config, num_classes=source.num_classes, mesh=mesh)
    views = device_views.from_config(config, mesh)
    make_step = functools.partial(
        compiling.compile_step,
        mesh=mesh,
        views=views,
        deterministic=config.parallel.deterministic,
    )
    advance = rematerialization.fitting(make_step, parts, config)
    state = compiling.compile_init(parts, mesh, image_size=config.image_size)(
        jax.random.key(config.seed)
    )
    if placement == "accelerator":
        batch = next(input_pipeline.global_batches(config, source, 0, mesh))
    else:
        batch = _synthetic_batch(config, views, mesh)
    start = time.monotonic()
    state, *_ = jax.block_until_ready(advance(state, batch))
    compile_secs = time.monotonic() - start
    state, *_ = jax.block_until_ready(advance(state, batch))  # warm-up
    count, start = 0, time.monotonic()
    while count == 0 or time.monotonic() - start < secs:
        state, *_ = jax.block_until_ready(advance(state, batch))
        count += 1
    rate = count * config.batch.batch_size / (time.monotonic() - start)
    devices = jax.local_devices()
    return Device(devices[0].device_kind, len(devices), rate, compile_secs)


def _synthetic_batch(
    config: config_dict.ConfigDict, views: device_views.DeviceViews | None, mesh: Any
) -> dict[str, jax.Array]:
    size, batch_size = config.image_size, config.batch.batch_size
    generator = np.random.default_rng(0)
    shape = (batch_size, objectives.NUM_VIEWS, size, size, 3)
    batch = {
        "images": generator.integers(0, 256, shape, np.uint8),
        "labels": np.zeros(batch_size, np.int32),
    }
    if views:
        draws = views.input_shapes(None)["draws"]
        batch["draws"] = generator.random(draws.shape, np.float32)
    return parallel.shard_batch(mesh, batch)


def table(
    hosts: list[Host], devices: Mapping[str, Device], *, num_cores: int
) -> list[str]:
    """Lines for people."""
    lines = ["input pipeline, one core: ms of processor time an image, by stage"]
    names = [name for name in stages.STAGES if name in hosts[0].stage_secs]
    columns = ["mode", *names, "images/s a core"]
    if devices:
        columns += ["device images/s", "cores a device"]
        columns.append(f"bottleneck, {num_cores} cores")
    rows = [columns]
    for host in hosts:
        if host.unavailable:
            rows.append([host.placement, f"not possible: {host.unavailable}"])
            continue
        cells = [
            f"{host.stage_secs[name] * 1e3:.3f}" if name in host.stage_secs else "-"
            for name in names
        ]
        rate = host.images_per_core_sec
        row = [host.placement, *cells, f"{rate:.0f}" if rate < float("inf") else "-"]
        device = devices.get(host.placement)
        if device:
            verdict = bottleneck.of_rates(rate * num_cores, device.images_per_sec)
            needed = device.images_per_sec / device.count / rate
            row += [f"{device.images_per_sec:.0f}", f"{needed:.2f}", verdict]
        rows.append(row)
    widths = [
        max(len(row[i]) for row in rows if i < len(row) and len(row) > 2)
        for i in range(len(columns))
    ]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        for row in rows
    ]
    return [line.rstrip() for line in lines]


def measure(
    config: config_dict.ConfigDict,
    *,
    placements: list[str],
    secs: float,
    with_device: bool,
    report: Callable[[str], None],
) -> tuple[list[Host], dict[str, Device]]:
    """All that the command shows.

    Args:
      config: as in `configs/base.py`.
      placements: of `composition.PLACEMENTS`.
      secs: to spend on each stage, and on each train step.
      with_device: also run the train step.
      report: takes lines of progress.

    Raises:
      ConfigError, DataError: the config or dataset cannot be run.
    """
    rules.validate(config)
    source = input_pipeline.open_source(config, config.data.split, to_train=True)
    source = input_pipeline.hold_in_memory(_placed(config, "host"), source)
    resolve.resolve(config, num_examples=source.num_examples)
    report("measuring the input pipeline")
    hosts = [
        host
        for host in measure_hosts(config, source, secs=secs)
        if host.placement in placements
    ]
    devices = {}
    for host in hosts if with_device else []:
        if not host.unavailable:
            report(
                f"compiling and running the train step, views from: {host.placement}"
            )
            devices[host.placement] = measure_device(
                config, source, host.placement, secs=secs
            )
    return hosts, devices
