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
import re
import sys
from typing import Any

from absl import flags

from simclr_jax import cli
from simclr_jax.config import rules
from simclr_jax.configs import base, finetune
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation import overrides, transfer
from simclr_jax.plan import topologies
from simclr_jax.weights import formats


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
    try:
        check_values(module, flags.FLAGS.flag_values_dict())
    except Exception as error:
        return str(error)
    return ""


def check_values(module: str, values: dict[str, Any]) -> None:
    """Raises the error of the command itself where a value is none of those allowed."""
    if values.get("config") is not None:
        rules.validate(values["config"])
    if module == "evaluate":
        for override in values["set"]:
            try:
                overrides.with_overrides(base.get_config().to_dict(), [override])
            except ConfigError:
                config = finetune.get_config("cifar10,0.1")
                overrides.with_training_overrides(config, [override])
        names = re.findall(r"\w+", flags.FLAGS["protocol"].help)
        for name in values["protocol"]:
            if name not in names:
                raise ConfigError(f"--protocol={name}: is not in the flag's help")
        transfer.choose(values["datasets"])
    if module == "export":
        formats.check_name(values["format"])
    if module == "plan":
        for name in values["topology"] or ():
            topologies.parse(name)


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
