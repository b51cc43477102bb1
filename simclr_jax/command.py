"""What all commands share: flags, logging, and errors in one line."""

import logging
import pathlib
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from simclr_jax.errors import InvalidInput, RunFailed

# The flags defined here show in the --help of the command that asks for them.
flags.disclaim_key_flags()
# Config files import each other as `configs.NAME`, from whatever folder one starts in.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

_FAILED, _USAGE_ERROR, _INTERRUPTED = 1, 2, 130


def define_config() -> flags.FlagHolder:
    """Defines `--config=FILE[:ARGUMENT]` and `--config.key=value`."""
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, such as configs/cifar10.py or configs/imagenet.py:50x2; "
        "--config.key=value sets one of its keys.",
    )


def define_workdir() -> flags.FlagHolder:
    """Defines `--workdir`."""
    return flags.DEFINE_string("workdir", None, "The run directory.")


def run(main: Callable[[], None], *, required: tuple[str, ...] = ()) -> None:
    """Parses the flags and runs a command.

    A value that cannot be right ends with one line on stderr and exit code 2; a run
    that cannot go on, such as one whose loss is not finite, with one line and exit
    code 1.

    Args:
      main: the command.
      required: names of flags that must be given.
    """
    for name in required:
        flags.mark_flag_as_required(name)
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        for name in flags.FLAGS:
            # A config file that is not there is complained about at first use only.
            getattr(flags.FLAGS[name].value, "keys", None)
    except Exception as error:  # config files are programs and can raise anything
        _exit(error, _USAGE_ERROR)
    if len(rest) > 1:
        _exit(f"unexpected argument {rest[1]!r}", _USAGE_ERROR)
    return rest


def _guarded(main: Callable[[], None]) -> None:
    _set_up_logging()
    try:
        main()
    except InvalidInput as error:
        _exit(error, _USAGE_ERROR)
    except RunFailed as error:
        _exit(error, _FAILED)
    except KeyboardInterrupt:
        _exit("interrupted", _INTERRUPTED)


def _set_up_logging() -> None:
    """Shows what this package has to say, and only warnings of the libraries."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("simclr_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _exit(error: Exception | str, code: int) -> NoReturn:
    # Key errors quote their message; flag errors may have several lines.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(code)
