"""TPU slices by name: chips, published figures, and the compiler's view of them."""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

from simclr_jax.errors import ConfigError

_TERA, _GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    Attributes:
      bf16_flops: peak, FLOP/s with bfloat16 inputs.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s that a chip can send over all its links together; as much
        comes in at the same time.
      devices: JAX devices in a chip as the compiler lists them, each with its share of
        the above.
      clock: cycles/s of its cores; None where it is not known.
      ring: chips in a row of a slice whose links close to a ring, or a divisor of it.
    """

    bf16_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    devices: int
    clock: float | None
    ring: int


def _chip(
    tflops: float, hbm: float, ici: float, devices: int, units: int | None, ring: int
) -> Chip:
    # A matrix unit makes 128 x 128 products and as many sums in a cycle.
    clock = tflops * _TERA / (units * 2 * 128**2) if units else None
    return Chip(tflops * _TERA, hbm * _GIGA, ici * _GIGA, devices, clock, ring)


# Peak and HBM bandwidth: docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x}, and
# for v2 (which has no table there) Norrie et al., "The Design Process for Google's
# Training Chips: TPUv2 and TPUv3" (IEEE Micro 2021) with its four links of 496 Gbit/s.
# Interconnect: half of those pages' bidirectional figure per chip (v5e 400, v5p 1200,
# v6e 800, tpu7x 1200 GB/s); where they have none, their all-reduce bandwidth of a pod
# over its chips (v3 340 TB/s / 1024, v4 1.1 PB/s / 4096), which for v5e and v6e is the
# same half. Then: matrix units of 128 x 128 in a chip, by the same pages and article;
# with the peak they tell the clock (v5e: 197e12 / (4 x 32,768) = 1.5 GHz). Last: only
# full sides of a pod are rings, and in three dimensions those of slices of whole cubes,
# 4 x 4 x 4 chips.
CHIPS = {
    "v2": _chip(46, 700, 248, 2, 2, 16),
    "v3": _chip(123, 900, 332, 2, 4, 32),
    "v4": _chip(275, 1200, 269, 2, 8, 4),
    "v5e": _chip(197, 819, 200, 1, 4, 16),
    "v5p": _chip(459, 2765, 600, 1, 8, 4),
    "v6e": _chip(918, 1638, 400, 1, None, 16),
    "tpu7x": _chip(2307, 7380, 600, 2, None, 4),
}

_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_LARGE_CUBES = ("8x8x16", "8x16x16")

# Slices that can be had; the compiler would accept some that cannot.
SHAPES = {
    "v2": ("1x1", "2x2", "4x4", "8x8", "8x16", "16x16"),
    "v3": ("1x1", "2x2", "4x4", "8x8", "8x16", "16x16", "16x32", "32x32"),
    "v4": ("1x1x1", *_CUBES, *_LARGE_CUBES),
    "v5e": _SQUARES,
    "v5p": ("1x1x1", *_CUBES, *_LARGE_CUBES),
    "v6e": _SQUARES,
    "tpu7x": ("1x1x1", *_CUBES, *_LARGE_CUBES),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, such as 'v5e:4x4'."""

    name: str
    chip: Chip
    chips: int

    @property
    def devices(self) -> int:
        """JAX devices in the slice."""
        return self.chips * self.chip.devices

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each side."""
        return tuple(int(side) for side in self.name.partition(":")[2].split("x"))


def parse(name: str) -> Topology:
    """A slice by its name.

    Raises:
      ConfigError: there is no such slice; names those there are.
    """
    generation, _, shape = name.partition(":")
    if shape not in SHAPES.get(generation, ()):
        raise ConfigError(f"--topology={name}: must be one of {describe_all()}")
    chips = math.prod(map(int, shape.split("x")))
    return Topology(name, CHIPS[generation], chips)


def describe_all() -> str:
    """The names of all slices, a generation in a group."""
    return "; ".join(
        f"{generation}:{{{','.join(shapes)}}}" for generation, shapes in SHAPES.items()
    )


def prepare_environment() -> None:
    """Sets what the TPU compiler needs on a machine without TPUs.

    To be called before JAX is imported, which reads some of it only then.
    """
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        # Programs for absent devices can be written to JAX's cache and not read again.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        # As pretraining compiles, whatever a test suite has set.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        # Otherwise libtpu asks the cloud's metadata server which TPU it runs on.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Compiling occupies no TPU, so two plans may run at the same time.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    # Notes about TPUs that are not there; real errors come as exceptions.
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def check_libtpu() -> str:
    """The version of libtpu, which holds the compiler.

    Raises:
      ConfigError: it is missing, or is not the one that this JAX wants.
    """
    wanted = _wanted_libtpu()
    install = f'install it with `pip install "libtpu{wanted or ""}"`'
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if version is None or importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"libtpu is not installed, the compiler for TPUs: {install}")
    if wanted is not None:
        prefix = wanted.removeprefix("==").removesuffix("*")
        if not f"{version}.".startswith(prefix):
            jax_version = importlib.metadata.version("jax")
            raise ConfigError(
                f"libtpu {version} does not go with JAX {jax_version}: {install}"
            )
    return version


def _wanted_libtpu() -> str | None:
    """The release that JAX's extra 'tpu' asks for, such as '==0.0.42.*'."""
    for requirement in importlib.metadata.requires("jax") or []:
        match = re.match(r"libtpu\s*(==[\d.]+\*)", requirement)
        if match:
            return match[1]
    return None


def open_devices(topology: Topology) -> list[Any]:
    """Devices to compile for; nothing can run on them."""
    from jax.experimental import topologies

    arguments: dict[str, Any] = {}
    if topology.chips == 1:
        # A host has four chips by default, and a slice whole hosts.
        arguments["chips_per_host_bounds"] = [1, 1, 1]
    return list(topologies.get_topology_desc(topology.name, "tpu", **arguments).devices)
