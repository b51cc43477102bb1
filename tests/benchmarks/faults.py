"""Kills a life of a run at random moments, and proves that it ends as if nothing was.

    python tests/benchmarks/faults.py --kills=48 --markdown=faults.md

A life is `prepare`, `pretrain` and `evaluate` on a few hundred images, in four
settings: on a local disk and on an emulated object store, trained by one process and by
two. In each setting a command is killed (SIGKILL) in the phase and at the moment that a
seeded generator chooses, and started again, until it ends. Then the prepared files, the
state of the last step bit for bit, the metrics of each step and the receipts are
compared with those of a life on the disk that nothing disturbed.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

# Programs that compile quickly, in this process and in those that it starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import fsspec  # noqa: E402
import jax  # noqa: E402
import jobs  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import sample_images  # noqa: E402
import stores  # noqa: E402
from etils import epath  # noqa: E402
from etils.epath import backend  # noqa: E402

from simclr_jax import paths  # noqa: E402
from simclr_jax.runs import metrics_writer, orbax_paths  # noqa: E402

NUM_STEPS, EVERY_STEPS = 40, 4
SETTINGS = (
    *sample_images.SMALL_TRAINING,
    "--config.data.in_memory_mb=0",
    f"--config.schedule.train_steps={NUM_STEPS}",
    "--config.log.every_steps=1",
    f"--config.checkpoint.every_steps={EVERY_STEPS}",
)
# Of a training, what has to be there before the kill, and the longest delay after it.
PHASES = {
    "prepare": 3.0,
    "start-up": 6.0,
    "compilation": 4.0,
    "steps": 1.5,
    "save": 0.3,
    "evaluation": 8.0,
}
# In this order a life goes through them; a training has four.
_TRAINING = ("start-up", "compilation", "steps", "save")
_PATIENCE_SECS = 300.0
# Processes that lost one in a step end at once; before, JAX takes minutes to notice.
_NOTICE_SECS = 5.0


@dataclasses.dataclass
class Tally:
    """What happened in one setting.

    Attributes:
      setting: where, and by how many processes.
      kills: by phase.
      lost_steps: of each kill in the training: steps that were made again.
      recovery_secs: of each kill: from the next start until the command was as far as
        before, or ended.
      differences: from the undisturbed life; must be none.
    """

    setting: str
    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lost_steps: list[int] = dataclasses.field(default_factory=list)
    recovery_secs: list[float] = dataclasses.field(default_factory=list)
    differences: list[str] = dataclasses.field(default_factory=list)

    def row(self) -> str:
        """A row of the table."""
        kills = ", ".join(f"{name} {count}" for name, count in self.kills.items())
        survived = "all" if not self.differences else "; ".join(self.differences)
        return (
            f"| {self.setting} | {self.kills.total()} ({kills}) | {survived} | "
            f"{max(self.lost_steps, default=0)} | {max(self.recovery_secs):.0f} |"
        )


class Life:
    """One life below a folder or bucket."""

    def __init__(self, root: str, images: pathlib.Path, num_processes: int) -> None:
        """Nothing is started yet.

        Args:
          root: a folder, local or on a store.
          images: the folder to prepare.
          num_processes: that train and evaluate.
        """
        self.run = f"{root}/run"
        self.data = f"{root}/data"
        self._images, self._num_processes = images, num_processes

    def start(self, stage: str) -> list:
        """Starts a command; returns its processes."""
        command = {
            "prepare": (f"--input={self._images}", f"--output={self.data}"),
            "pretrain": (
                *SETTINGS,
                f"--workdir={self.run}",
                f"--config.data.dataset=prepared:{self.data}",
            ),
            "evaluate": (f"--workdir={self.run}", "--protocol=knn,linear"),
        }[stage]
        several = self._num_processes if stage != "prepare" else 1
        return jobs.start(
            ["-m", f"simclr_jax.{stage}", *command],
            num_processes=several,
            devices_each=2 // several,
        )

    def finish(self, stage: str) -> None:
        """Runs a command to its end."""
        for code, text in jobs.finish(self.start(stage)):
            if code:
                raise SystemExit(f"{stage} ended with {code}:\n{text[-3000:]}")

    def steps(self) -> list[int]:
        """The steps in the metrics so far."""
        return [record["step"] for record in self._records()]

    def _records(self) -> list[dict]:
        path = paths.as_path(self.run) / metrics_writer.FILE_NAME
        with contextlib.suppress(FileNotFoundError):
            return metrics_writer.read_metrics(path)
        return []

    def checkpoints(self) -> list[int]:
        """The steps of the complete checkpoints."""
        return orbax_paths.complete_steps(paths.as_path(self.run) / "checkpoints")

    def is_saving(self) -> bool:
        """Whether a checkpoint is begun and not complete."""
        folder = paths.as_path(self.run) / "checkpoints"
        with contextlib.suppress(OSError):
            names = [path.name for path in folder.iterdir()]
            begun = {int(n.split(".")[0]) for n in names if n.split(".")[0].isdecimal()}
            return bool(begun - set(self.checkpoints()))
        return False

    def outcome(self) -> dict[str, object]:
        """Everything that the commands left, to be compared."""
        found: dict[str, object] = {}
        data = paths.as_path(self.data)
        for path in _files(data):
            name = path.relative_to(data).as_posix()
            found[f"data {name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        state = paths.as_path(self.run) / "checkpoints" / str(NUM_STEPS) / "state"
        for path, leaf in jax.tree_util.tree_leaves_with_path(_restored(state)):
            digest = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
            found[f"state {jax.tree_util.keystr(path)}"] = digest
        records = self._records()
        found["steps"] = [record["step"] for record in records]
        found["losses"] = [record["loss"] for record in records]
        for path in (paths.as_path(self.run) / "eval").glob("*.json"):
            found[f"receipt {path.name}"] = json.loads(path.read_text())["value"]
        return found


def _restored(state: epath.Path) -> object:
    """The arrays of an item, however many processes have saved them."""
    complete = orbax_paths.temporary_path_class(state.parent.parent)
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(), temporary_path_class=complete
    ) as checkpointer:
        metadata = checkpointer.metadata(state).item_metadata.tree
        arrays = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata
        )
        return checkpointer.restore(state, ocp.args.PyTreeRestore(restore_args=arrays))


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


class Log:
    """What a process prints, as a file that grows."""

    def __init__(self, process) -> None:
        self.text = ""
        self._stream = process.stdout
        os.set_blocking(self._stream.fileno(), False)

    def update(self) -> str:
        """All text so far."""
        with contextlib.suppress(TypeError, BlockingIOError):
            self.text += self._stream.read() or ""
        return self.text


class Start:
    """One start of a command, to its end or to a kill."""

    def __init__(self, life: Life, stage: str, tally: Tally, furthest: int | None):
        """Starts the command.

        Args:
          life: that it belongs to.
          stage: the command.
          tally: of what happens.
          furthest: the step that the start before had reached; None for the first one.
        """
        self._life, self._stage, self._tally = life, stage, tally
        self._is_training = stage == "pretrain"
        self._furthest = furthest
        self._restored = max(life.checkpoints(), default=0) if self._is_training else 0
        if self._is_training and furthest is not None:
            tally.lost_steps.append(max(furthest - self._restored, 0))
        self._begun_at = time.monotonic()
        self._processes = life.start(stage)
        self._logs = [Log(process) for process in self._processes]
        self._is_behind = furthest is not None

    def run(self, phase: str | None, generator: random.Random) -> bool:
        """Waits for the end, or for a moment of a phase to kill in; False if killed."""
        if phase is not None:
            self._wait(lambda: self._is_in(phase), _PATIENCE_SECS)
            self._wait(lambda: False, generator.uniform(0, PHASES[phase]))
            if self._are_all_alive():
                generator.choice(self._processes).send_signal(signal.SIGKILL)
                self._tally.kills[phase] += 1
                print(f"{self._tally.setting}: killed in {phase}", flush=True)
                self._wait_for_all(_NOTICE_SECS)
                return False
        self._wait_for_all(_PATIENCE_SECS)
        codes = [process.returncode for process in self._processes]
        if any(codes):
            said = "\n".join(log.update()[-6000:] for log in self._logs)
            raise SystemExit(f"{self._stage} ended with {codes}:\n{said}")
        self._note_recovery()
        return True

    def furthest(self) -> int:
        """The step that this start or one before has reached, by what they log."""
        logged = [m for log in self._logs for m in re.findall(r"step (\d+)/", log.text)]
        return max([self._furthest or 0, *map(int, logged)])

    def _is_in(self, phase: str) -> bool:
        if phase == "compilation":
            return any("Compiling" in log.text for log in self._logs)
        if phase == "steps":
            return max(self._life.steps(), default=0) > self._restored
        return phase != "save" or self._life.is_saving()

    def _wait(self, condition: Callable[[], bool], secs: float) -> None:
        deadline = time.monotonic() + secs
        while not condition() and time.monotonic() < deadline:
            if not self._are_all_alive():
                return
            time.sleep(0.005)

    def _are_all_alive(self) -> bool:
        texts = [log.update() for log in self._logs]
        words = f"step {(self._furthest or 0) + 1}/"
        if self._is_training and any(words in text for text in texts):
            self._note_recovery()
        return all(process.poll() is None for process in self._processes)

    def _note_recovery(self) -> None:
        if self._is_behind:
            self._tally.recovery_secs.append(time.monotonic() - self._begun_at)
        self._is_behind = False

    def _wait_for_all(self, secs: float) -> None:
        """Waits until all are gone, and kills those that are left, as launchers do."""
        deadline = time.monotonic() + secs
        while any(process.poll() is None for process in self._processes):
            self._are_all_alive()
            if time.monotonic() > deadline:
                for process in self._processes:
                    process.kill()
            time.sleep(0.02)
        self._are_all_alive()


def disturb(
    life: Life, tally: Tally, *, num_kills: int, generator: random.Random
) -> None:
    """Lives a life with kills in all phases."""
    names = list(PHASES)
    phases = [names[number % len(names)] for number in range(num_kills)]
    for stage, own in (
        ("prepare", ("prepare",)),
        ("pretrain", _TRAINING),
        ("evaluate", ("evaluation",)),
    ):
        todo = [phase for phase in phases if phase in own]
        generator.shuffle(todo)
        furthest: int | None = None
        while True:
            start = Start(life, stage, tally, furthest)
            if start.run(todo.pop() if todo else None, generator):
                break
            furthest = start.furthest()
        for phase in todo:
            print(f"{tally.setting}: ended before a kill in {phase}", flush=True)


def differences(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    """What is not as in the undisturbed life."""
    names = sorted({*found, *expected})
    return [name for name in names if found.get(name) != expected.get(name)]


def _server(stack: contextlib.ExitStack) -> stores.Server:
    """A store that this process and the commands find."""
    server = stack.enter_context(stores.gcs_server())
    os.environ.update(server.variables())
    fsspec.config.conf.setdefault("gs", {})["token"] = "anon"
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()
    return server


def main() -> None:
    """Runs the settings and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=48, help="in all settings together"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--markdown", type=pathlib.Path, help="a file for the table")
    parser.add_argument(
        "--settings",
        default="disk-1,disk-2,store-1,store-2",
        help="disk or store, and the number of processes",
    )
    arguments = parser.parse_args()
    settings = arguments.settings.split(",")
    generator = random.Random(arguments.seed)
    rows = [
        "| run directory and data on, processes | kills | survived | most steps lost | "
        "slowest recovery, s |",
        "|---|---|---|---|---|",
    ]
    failed = False
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = pathlib.Path(folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "cache")
        sample_images.write_colours(root / "images", {"train": 120, "val": 30})
        expected = {}
        for count in sorted({int(setting[-1]) for setting in settings}):
            whole = Life(str(root / f"whole{count}"), root / "images", count)
            for stage in ("prepare", "pretrain", "evaluate"):
                whole.finish(stage)
            expected[count] = whole.outcome()
        for number, setting in enumerate(settings):
            place, count = setting.split("-")
            where = str(root / setting)
            if place == "store":
                where = f"{_server(stack).new_bucket()}/life"
            tally = Tally(f"{place}, {count}")
            share = len(range(number, arguments.kills, len(settings)))
            life = Life(where, root / "images", int(count))
            disturb(life, tally, num_kills=share, generator=generator)
            tally.differences = differences(life.outcome(), expected[int(count)])
            failed |= bool(tally.differences)
            rows.append(tally.row())
            print(rows[-1], flush=True)
    table = "\n".join(rows)
    print(table)
    if arguments.markdown:
        arguments.markdown.write_text(table + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
