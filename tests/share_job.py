"""Prints the share of the host's resources that a process of a job has.

Run by `test_host_resources.py`.
"""

import dataclasses
import json

from absl import app

from simclr_jax import cli, host_resources

cli.define_processes()


def main(_) -> None:
    cli.start_processes(None)
    print(json.dumps(dataclasses.asdict(host_resources.mine())))


if __name__ == "__main__":
    app.run(main)
