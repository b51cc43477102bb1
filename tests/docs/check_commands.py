"""Parses commands as their modules do and validates their configs; runs nothing.

Reads a JSON list of argument lists from stdin and writes a list of messages, '' for a
command that is fine. Each command is parsed in a fork, since modules define flags when
they are imported.
"""

import contextlib
import importlib
import io
import json
import os
import sys

from absl import flags

from simclr_jax import cli
from simclr_jax.config import identity, rules
from simclr_jax.configs import base, finetune

KEYS = {
    *identity.flatten(base.get_config()),
    *identity.flatten(finetune.get_config("cifar10,0.1")),
}


def problem(module: str, arguments: list[str]) -> str:
    package = importlib.util.find_spec(f"simclr_jax.{module}")
    if package is None:
        return f"there is no simclr_jax.{module}"
    main = ".__main__" if package.submodule_search_locations else ""
    importlib.import_module(f"simclr_jax.{module}{main}")
    sys.argv = [module, *arguments]  # where ml_collections looks for overrides
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            cli._parse(sys.argv)
        except SystemExit:
            return errors.getvalue()
    values = flags.FLAGS.flag_values_dict()
    for override in values.get("set") or ():
        key = override.partition("=")[0]
        if key not in KEYS:
            return f"--set={override}: no such key"
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    if config is not None:
        try:
            rules.validate(config)
        except Exception as error:
            return str(error)
    return ""


def main() -> None:
    results = []
    for module, *arguments in json.load(sys.stdin):
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, problem(module, arguments).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            results.append(file.read().decode())
        if os.wait()[1] != 0:
            results[-1] = "the check failed"
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
