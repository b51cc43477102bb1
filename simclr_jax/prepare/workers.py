"""Work spread over processes that end with the one that started them."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Protocol, TypeVar

from simclr_jax.errors import RunFailed

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Run(Protocol):
    """Applies a function to all tasks, somewhere; yields (task, result) in any order.

    The function is at the top level of a module, and its results are what JSON knows.
    """

    def __call__(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], /
    ) -> Iterator[tuple[Any, Any]]:
        """Raises RunFailed if the same command has to resume."""
        ...


def run_all(
    function: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    *,
    num_workers: int,
    preload: str,
) -> Iterator[tuple[_Task, _Result]]:
    """Applies a function to all tasks and yields (task, result) in any order.

    Args:
      function: at the top level of a module.
      tasks: its arguments.
      num_workers: how many processes; with one the work is done in this process.
      preload: module that all of them need; imported once for all.

    Raises:
      RunFailed: a process ended abruptly.
    """
    num_workers = min(num_workers, len(tasks))
    if num_workers <= 1:
        for task in tasks:
            yield task, function(task)
        return
    # Forked from a process that has imported the module and done nothing else: they
    # share its memory, start at once, and inherit no thread or lock.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start
    )
    try:
        futures = {pool.submit(function, task): task for task in tasks}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RunFailed(
            "a worker process ended abruptly, perhaps out of memory; the same "
            "command resumes, with fewer workers by --num_workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    # Ctrl-C reaches all processes; the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that gives it work is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
