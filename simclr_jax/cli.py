"""What all commands share: flags, logging, and errors in one line."""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from simclr_jax.config import renamed, shipped
from simclr_jax.errors import InvalidInput, RunFailed, RunStopped

# The flags defined here show in the --help of the command that asks for them.
flags.disclaim_key_flags()

# The last two as shells have them: 128 and the number of the signal.
_FAILED, _USAGE_ERROR, _INTERRUPTED, _STOPPED = 1, 2, 130, 143


def define_config() -> flags.FlagHolder:
    """Defines `--config=NAME_OR_FILE[:ARGUMENT]` and `--config.key=value`."""
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "A shipped config, such as cifar10 or imagenet:50x2, or a config file FILE.py; "
        "--config.key=value sets one of its keys.",
    )


def define_workdir() -> flags.FlagHolder:
    """Defines `--workdir`."""
    return flags.DEFINE_string("workdir", None, "The run directory.")


def define_allow_config_change() -> flags.FlagHolder:
    """Defines `--allow_config_change`."""
    return flags.DEFINE_bool(
        "allow_config_change",
        False,
        "Resume in a run directory although its config differs from this one.",
    )


def define_evaluate() -> flags.FlagHolder:
    """Defines `--evaluate`, of commands that train a classifier."""
    return flags.DEFINE_bool(
        "evaluate",
        True,
        "Classify config.evaluation.test_split at the end, into eval/classifier.json.",
    )


def define_processes() -> None:
    """Defines the flags of a job of several processes, for `start_processes`."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT of process 0, for many hosts; not needed on Cloud TPU, GKE, SLURM.",
    )
    flags.DEFINE_integer("num_processes", None, "How many processes there are.")
    flags.DEFINE_integer("process_id", None, "The number of this one, from 0.")
    flags.DEFINE_float(
        "startup_timeout_secs",
        300,
        "How long to wait for the other processes.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder that keeps compiled programs, so that a second start is quick; all "
        "hosts should share it. By default ~/.cache/simclr_jax, and with several "
        "processes the run directory; '' keeps none.",
    )


def start_processes(workdir: str | None, *, handle_preemption: bool = False) -> None:
    """Joins the other processes, if there are any, and opens the compilation cache.

    To be called before anything touches a device.

    Args:
      workdir: the run directory, which all hosts share; None keeps no compiled
        programs where they would be kept there.
      handle_preemption: as in `processes.start`.

    Raises:
      ConfigError, StartFailed: as `processes.start`.
    """
    import jax

    from simclr_jax.parallel import processes
    from simclr_jax.training import cpu_memory

    cpu_memory.keep_freed_memory()
    values = flags.FLAGS
    processes.start(
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        timeout_secs=values.startup_timeout_secs,
        handle_preemption=handle_preemption,
    )
    # Only now: whether processes share a cache decides where it is.
    cache = values.compilation_cache
    if cache is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        if jax.process_count() > 1:
            cache = workdir and os.path.join(workdir, "compilation_cache")
        else:
            cache = os.path.expanduser("~/.cache/simclr_jax")
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache or None)
    if jax.process_count() > 1:
        _speak_as(jax.process_index())


def run(main: Callable[[], None], *, required: tuple[str, ...] = ()) -> None:
    """Parses the flags and runs a command.

    A bad value ends with one line on stderr and exit code 2; a run that fails, such as
    one whose loss is not finite, with one line and exit code 1; one stopped by SIGTERM
    with 143.

    Args:
      main: the command.
      required: names of required flags.
    """
    for name in required:
        flags.mark_flag_as_required(name)
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(_with_located_config(argv))
        for name in flags.FLAGS:
            # A missing config file raises an error at its first use only.
            getattr(flags.FLAGS[name].value, "keys", None)
    except Exception as error:  # config files are programs and can raise anything
        hints = [renamed.hint(text) for text in (*argv, str(error))]
        _exit(next(filter(None, hints), error), _USAGE_ERROR)
    if len(rest) > 1:
        _exit(f"unexpected argument {rest[1]!r}", _USAGE_ERROR)
    return rest


def _with_located_config(argv: list[str]) -> list[str]:
    """Arguments in which `--config=NAME` has become `--config=FILE`."""
    if "config" not in flags.FLAGS:
        return argv
    located = list(argv)
    for number, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            located[number] = f"{flag}={shipped.locate(value)}"
        elif number + 1 < len(argv):
            located[number + 1] = shipped.locate(argv[number + 1])
    return located


def _guarded(main: Callable[[], None]) -> None:
    _set_up_logging()
    try:
        main()
    except InvalidInput as error:
        _exit(error, _USAGE_ERROR)
    except RunStopped as error:
        _exit(error, _STOPPED)
    except RunFailed as error:
        _exit(error, _FAILED)
    except KeyboardInterrupt:
        _exit("interrupted", _INTERRUPTED)
    except Exception:
        if _others_are_waiting():
            logging.getLogger("simclr_jax").exception("unexpected error")
            _leave(_FAILED)
        raise


def _set_up_logging() -> None:
    """Shows what this package has to say, and only warnings of the libraries."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("simclr_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _speak_as(process_index: int) -> None:
    """Marks what other processes than 0 say, which is warnings only."""
    logger = logging.getLogger("simclr_jax")
    if process_index:
        logger.setLevel(logging.WARNING)
        layout = f"%(asctime)s [process {process_index}] %(message)s"
        for handler in logger.handlers:
            handler.setFormatter(logging.Formatter(layout, "%H:%M:%S"))


def _exit(error: Exception | str, code: int) -> NoReturn:
    # Key errors quote their message; flag errors may have several lines.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    if _others_are_waiting():
        _leave(code)
    sys.exit(code)


def _others_are_waiting() -> bool:
    # What was never imported has started no job.
    processes = sys.modules.get("simclr_jax.parallel.processes")
    return processes is not None and processes.others_are_waiting()


def _leave(code: int) -> NoReturn:
    """Ends this process at once.

    An orderly end would wait for all other processes first, for minutes, while they
    wait for this one in a collective; seeing it gone they end too.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
