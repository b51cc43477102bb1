"""Shared by all commands: flags, logging and one-line errors."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from simclr_jax import signals
from simclr_jax.config import explaining, shipped
from simclr_jax.errors import (
    CheckpointError,
    ConfigError,
    InvalidInput,
    RunFailed,
    RunStopped,
    printable,
    printable_lines,
)

# The flags defined here show in the --help of the command that asks for them.
flags.disclaim_key_flags()

_FAILED, _USAGE_ERROR = 1, 2
_MOST_SECS = 1_000_000
_PROCESSES_FLAG = "coordinator_address"


def define_config() -> flags.FlagHolder:
    """Defines `--config=NAME_OR_FILE[:ARGUMENT]` and `--config.key=value`."""
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "A shipped config, such as cifar10 or imagenet:50x2, or a config file FILE.py; "
        "--config.key=value sets one of its keys.",
    )


def overridden_keys() -> set[str]:
    """Keys of the config that the command line sets."""
    return set(config_flags.get_override_values(flags.FLAGS["config"]))


def define_workdir() -> flags.FlagHolder:
    """Defines `--workdir`."""
    return flags.DEFINE_string("workdir", None, "The run directory.")


def define_allow_config_change() -> flags.FlagHolder:
    """Defines `--allow_config_change`."""
    return flags.DEFINE_bool(
        "allow_config_change",
        False,
        "Resume a run although its recorded config differs from this one.",
    )


def define_allow_data_change() -> flags.FlagHolder:
    """Defines `--allow_data_change`."""
    return flags.DEFINE_bool(
        "allow_data_change",
        False,
        "Resume a run although its dataset is not the one that it began with.",
    )


def define_profile_steps() -> flags.FlagHolder:
    """Defines `--profile_steps`, for commands that train."""
    return flags.DEFINE_string(
        "profile_steps",
        None,
        "FIRST:LAST, such as 10:15: writes a trace of these steps, for XProf or "
        "TensorBoard, into the run directory.",
    )


def define_evaluate() -> flags.FlagHolder:
    """Defines `--evaluate`, for commands that train a classifier."""
    return flags.DEFINE_bool(
        "evaluate",
        True,
        "Classify config.evaluation.test_split at the end, into eval/classifier.json.",
    )


def define_init_from() -> flags.FlagHolder:
    """Defines `--init_from`, for pretraining."""
    return flags.DEFINE_string(
        "init_from",
        None,
        "Weights to start from instead of random ones: a run, one of its checkpoints, "
        "an export, or a file that simclr_jax.convert reads.",
    )


def define_processes() -> None:
    """Defines the flags of a job of several processes, for `start_processes`."""
    flags.DEFINE_string(
        _PROCESSES_FLAG,
        None,
        "HOST:PORT of process 0, for many hosts; not needed on Cloud TPU, GKE, SLURM.",
    )
    flags.DEFINE_integer("num_processes", None, "The number of processes.")
    flags.DEFINE_integer("process_id", None, "The index of this process, from 0.")
    flags.DEFINE_float(
        "startup_timeout_secs",
        300,
        "How long to wait for the other processes.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder of JAX's persistent compilation cache, which makes later starts quick "
        "(may be on gs:// or s3://); "
        "all hosts should share it. By default ~/.cache/simclr_jax, with several "
        "processes a folder in the run directory; '' disables the cache.",
    )


def start_processes(workdir: str | None) -> None:
    """Joins the other processes, if there are any, and opens the compilation cache.

    Must be called before the first use of a device.

    Args:
      workdir: the run directory, which all hosts share; None disables the cache where
        it would be in that directory.

    Raises:
      ConfigError, StartFailed: as `processes.start`.
    """
    import jax

    from simclr_jax import paths
    from simclr_jax.parallel import processes
    from simclr_jax.runs import atomic
    from simclr_jax.training import cpu_memory

    cpu_memory.keep_freed_memory()
    values = flags.FLAGS
    check_secs("startup_timeout_secs", values.startup_timeout_secs)
    processes.start(
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        timeout_secs=values.startup_timeout_secs,
    )
    # After the start, because the default depends on the number of processes.
    cache = values.compilation_cache
    if cache:
        atomic.make_folder(cache, flag="compilation_cache")
    elif cache is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        if jax.process_count() > 1:
            cache = workdir and os.path.join(workdir, "compilation_cache")
        else:
            cache = "~/.cache/simclr_jax"
    if cache is not None:
        folder = str(paths.as_path(cache)) if cache else None
        jax.config.update("jax_compilation_cache_dir", folder)
    if jax.process_count() > 1:
        _label_log_lines(jax.process_index())


def check_secs(flag: str, secs: float) -> None:
    """Raises ConfigError unless a flag's time ends within two weeks."""
    if not 0 < secs <= _MOST_SECS:  # true of NaN, which bounds of flags let pass
        raise ConfigError(f"--{flag}={secs}: must be positive and at most {_MOST_SECS}")


def run(main: Callable[[], None], *, required: tuple[str, ...] = ()) -> None:
    """Parses the flags and runs a command.

    A bad value ends with one line on stderr and exit code 2; a run that fails, such as
    one whose loss is not finite, with one line and exit code 1; one stopped by SIGTERM
    with 143, by SIGINT with 130. Commands of several processes hear of these signals at
    any time, and end at once unless a training saves; see `signals`.

    Args:
      main: the command.
      required: names of required flags.
    """
    for name in required:
        flags.mark_flag_as_required(name)
        flags.register_validator(
            name, lambda value: value not in ("", [""]), "must not be empty"
        )
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    file = None
    try:
        located, file = _with_located_config(argv)
        rest = flags.FLAGS(located)
        for name in flags.FLAGS:
            # A missing config file raises an error at its first use only.
            value = flags.FLAGS[name].value
            if name == "config" and not hasattr(value, "keys") and value is not None:
                _exit(explaining.returned(value, str(file)), _USAGE_ERROR)
    except ConfigError as error:
        _exit(error, _USAGE_ERROR)
    except (Exception, SystemExit) as error:  # a config file is a program
        if isinstance(error, SystemExit) and not explaining.is_of_file(error, file):
            raise  # of --help
        _exit(explaining.explain(error, argv, file), _USAGE_ERROR)
    if len(rest) > 1:
        _exit(f"unexpected argument {rest[1]!r}", _USAGE_ERROR)
    return rest


def _with_located_config(argv: list[str]) -> tuple[list[str], str | None]:
    """The arguments with `--config=NAME` replaced by `--config=FILE`, and FILE."""
    located, file = list(argv), None
    if "config" not in flags.FLAGS:
        return located, None
    for number, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            file = shipped.locate(value)
            located[number] = f"{flag}={file}"
        elif number + 1 < len(argv):
            file = located[number + 1] = shipped.locate(argv[number + 1])
    return located, file


def _guarded(main: Callable[[], None]) -> None:
    _set_up_logging()
    several = _PROCESSES_FLAG in flags.FLAGS
    listening = signals.listening() if several else contextlib.nullcontext()
    try:
        with listening:
            main()
    except InvalidInput as error:
        _exit(error, _USAGE_ERROR)
    except RunStopped as error:
        _exit(error, signals.EXIT_CODES[signals.received() or signals.SIGTERM])
    except CheckpointError as error:
        # A save that failed leaves threads that would keep the process for minutes.
        _print(error)
        _leave(_FAILED)
    except RunFailed as error:
        _exit(error, _FAILED)
    except KeyboardInterrupt:
        _exit("interrupted", signals.EXIT_CODES[signals.SIGINT])
    except Exception:
        if _others_are_waiting():
            logging.getLogger("simclr_jax").exception("unexpected error")
            _leave(_FAILED)
        raise


def say(text: str) -> None:
    """Prints the result of a command; characters that a terminal obeys are escaped."""
    print(printable_lines(text), flush=True)


class _Formatter(logging.Formatter):
    """Escapes what a terminal obeys; lines after a record's first one are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        return printable_lines(super().format(record)).replace("\n", "\n  ")


def _set_up_logging() -> None:
    """Logs the messages of this package, and only warnings of libraries."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Its errors reach the caller too, who says what they mean.
    absl_logging.get_absl_logger().addFilter(
        lambda record: not (record.exc_info and "orbax" in record.pathname)
    )
    # They log the traceback of each failed request, though most succeed when repeated.
    for library in ("aiobotocore", "botocore", "gcsfs", "s3fs"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("simclr_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _label_log_lines(process_index: int) -> None:
    """Labels the log lines of processes other than 0, which log only warnings."""
    logger = logging.getLogger("simclr_jax")
    if process_index:
        logger.setLevel(logging.WARNING)
        layout = f"%(asctime)s [process {process_index}] %(message)s"
        for handler in logger.handlers:
            handler.setFormatter(_Formatter(layout, "%H:%M:%S"))


def _print(error: Exception | str) -> None:
    # Key errors quote their message; flag errors may have several lines.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    print("error:", printable(" ".join(str(message).split())), file=sys.stderr)


def _exit(error: Exception | str, code: int) -> NoReturn:
    _print(error)
    if _others_are_waiting():
        _leave(code)
    sys.exit(code)


def _others_are_waiting() -> bool:
    # If the module was never imported, no process has joined a job.
    processes = sys.modules.get("simclr_jax.parallel.processes")
    return processes is not None and processes.others_are_waiting()


def _leave(code: int) -> NoReturn:
    """Ends this process at once.

    A normal exit would wait minutes for the other processes, which wait for this one
    in a collective. When this one is gone, they end too.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
