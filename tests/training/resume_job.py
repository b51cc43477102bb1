"""The real training loop, killed at a step, or resumed.

Run by `test_meshes.py`, alone or as one of several processes. Process 0 appends the
checksum of every batch, as all processes have it together, to a file.
"""

import json
import os

from absl import app, flags
from jobs import checksum
from pretraining import pretrain

from simclr_jax import cli, parallel
from simclr_jax.configs import smoke
from simclr_jax.parallel import processes

_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory.", required=True)
_BATCHES = flags.DEFINE_string("batches", None, "File of checksums.", required=True)
_OVERRIDE = flags.DEFINE_string("changes", "{}", "JSON, on top of the smoke config.")
_DIE_AT = flags.DEFINE_integer("die_at", None, "Number of the batch to die at.")
cli.define_processes()


def main(_) -> None:
    cli.start_processes(_WORKDIR.value)
    config = smoke.get_config()
    config.update_from_flattened_dict(json.loads(_OVERRIDE.value))
    seen = 0
    shard = parallel.shard_batch

    def watched(mesh, local):
        nonlocal seen
        seen += 1
        if seen == _DIE_AT.value:
            os._exit(9)
        batch = shard(mesh, local)
        line = checksum(parallel.fetch(mesh, batch)) + "\n"
        if processes.is_main():
            with open(_BATCHES.value, "a") as file:
                file.write(line)
        return batch

    parallel.shard_batch = watched
    pretrain(config, _WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
