"""Measures the input pipeline and the train step of a config, and which one waits.

    python -m simclr_jax.bench --config=configs/cifar10.py
    python -m simclr_jax.bench --config=configs/folder.py:IMAGES --device=False

Processor time of reading, decoding, cropping, colours, blur and packing on one core;
images/s of the train step on the devices that are here; host cores that each device
needs for each placement of the views: host, host_crop and accelerator
(`config.augment.placement`).
"""

import dataclasses
import json
import logging
import pathlib

from absl import flags

from simclr_jax import cli, host_resources
from simclr_jax.data.views.composition import PLACEMENTS
from simclr_jax.errors import InvalidInput

_LOG = logging.getLogger("simclr_jax.bench")

_CONFIG = cli.define_config()
_DEVICE = flags.DEFINE_bool("device", True, "Also run the train step on the devices.")
_MODES = flags.DEFINE_list(
    "modes", list(PLACEMENTS), "Placements of the views to measure."
)
_SECS = flags.DEFINE_float(
    "secs", 3.0, "Time for each stage and each train step.", lower_bound=0.1
)
_OUTPUT = flags.DEFINE_string("output", None, "File for all figures, as JSON.")


def main() -> None:
    """Runs the command."""
    cli.check_secs("secs", _SECS.value)
    unknown = sorted(set(_MODES.value or ()) - set(PLACEMENTS))
    if unknown or not _MODES.value:
        raise InvalidInput(
            f"--modes={','.join(_MODES.value or ())}: must be some of "
            f"{', '.join(PLACEMENTS)}"
        )
    # Imported here, so that --help and bad flags do not wait for TensorFlow.
    from simclr_jax.bench import throughput
    from simclr_jax.training import cpu_memory

    cpu_memory.keep_freed_memory()  # as training does, whose step is timed
    hosts, devices = throughput.measure(
        _CONFIG.value,
        placements=_MODES.value,
        secs=_SECS.value,
        with_device=_DEVICE.value,
        report=_LOG.info,
    )
    num_cores = host_resources.num_cpus()
    print("\n".join(throughput.table(hosts, devices, num_cores=num_cores)))
    for place, device in devices.items():
        print(
            f"{place}: {device.count} x {device.kind}, the step compiled in "
            f"{device.compile_secs:.0f} s"
        )
    if _OUTPUT.value:
        figures = {
            "config": _CONFIG.value.to_dict(),
            "num_cores": num_cores,
            "hosts": [dataclasses.asdict(host) for host in hosts],
            "devices": {
                place: dataclasses.asdict(device) for place, device in devices.items()
            },
        }
        try:
            pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise InvalidInput(
                f"--output={_OUTPUT.value}: cannot be written ({error})"
            ) from error


if __name__ == "__main__":
    cli.run(main, required=("config",))
