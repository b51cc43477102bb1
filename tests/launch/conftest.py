"""A world of machines, gcloud, ssh and others that is all in one folder.

What runs on a worker is really run, as that worker's bash with a home of its own.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FAKES = pathlib.Path(__file__).parent / "fakes"
# At the end, so that a script's name hides no library.
sys.path.append(str(ROOT / "launch"))

import checkout  # noqa: E402
import job  # noqa: E402
import supervise  # noqa: E402
import tpu  # noqa: E402
import worker  # noqa: E402


class World:
    """Arranges what the programs meet, and tells what they did."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        shutil.copytree(FAKES, root / "bin", ignore=shutil.ignore_patterns("worker"))
        shutil.copytree(FAKES / "worker", root / "worker_bin")
        for path in (*root.glob("bin/*"), *root.glob("worker_bin/*")):
            path.chmod(0o755)
        self.key = root / "user/.ssh/google_compute_engine"
        self.key.parent.mkdir(parents=True)
        self.key.write_text("")
        for name in ("fail", "once", "slices", "queued", "workers"):
            (root / name).mkdir()
        self.workers(2)

    def workers(self, count: int) -> None:
        (self.root / "worker_count").write_text(str(count))

    def home(self, index: int) -> pathlib.Path:
        home = self.root / "workers" / str(index) / "home"
        home.mkdir(parents=True, exist_ok=True)
        return home

    def write(self, index: int, name: str, text: str) -> None:
        """Writes a file into a worker's home."""
        path = self.home(index) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def behave(self, index: int, behaviour: str) -> None:
        self.write(index, "behaviour", behaviour)

    def fail(self, what: str, words: str = "acted out", once: bool = False) -> None:
        (self.root / ("once" if once else "fail") / what).write_text(words + "\n")

    def heal(self, what: str) -> None:
        (self.root / "fail" / what).unlink()

    def slice(self, state: str, name: str = "n") -> None:
        (self.root / "slices" / name).write_text(state)

    def queued(self, state: str, name: str = "n") -> None:
        (self.root / "queued" / name).write_text(state)

    def calls(self) -> list[list[str]]:
        """The programs called on this machine, with their arguments."""
        path = self.root / "calls"
        if not path.exists():
            return []
        return [call.split("\x1f")[:-1] for call in path.read_text().split("\x1e")[:-1]]

    def verbs(self) -> list[str]:
        """The calls of gcloud that change slices, with ssh and scp, in order."""
        kept = []
        for call in self.calls():
            verb = " ".join(call[3:5])
            if call[0] == "gcloud" and "describe" not in verb:
                kept.append(verb)
        return kept

    def run_of(self, index: int) -> pathlib.Path:
        return self.home(index) / "simclr_jax_run" / f"host{index}"

    def pid(self, index: int) -> int:
        return int((self.run_of(index) / "pid").read_text())

    def exit_code(self, index: int) -> str:
        return (self.run_of(index) / "exit_code").read_text().strip()

    def starts(self, index: int) -> int:
        path = self.home(index) / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def arguments(self, index: int) -> list[str]:
        text = (self.home(index) / "arguments").read_bytes().decode()
        return text.split("\0")[:-1]

    def programs(self, index: int) -> list[int]:
        """The processes of simclr_jax on a worker.

        A program that it is about to start still has its name, and does not count.
        """
        found = {}
        for pid in self.processes():
            try:
                cwd = os.readlink(f"/proc/{pid}/cwd")
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                status = pathlib.Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                continue
            inside = cwd.startswith(f"{self.home(index)}/")
            if inside and any(word.startswith(b"simclr_jax.") for word in words):
                # Behind the name in parentheses: state, parent, ...
                found[pid] = int(status.rpartition(")")[2].split()[1])
        return [pid for pid, parent in found.items() if parent not in found]

    def processes(self) -> list[int]:
        """All processes in this world."""
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*/cwd"):
            try:
                cwd = os.readlink(entry)
            except OSError:
                continue
            if cwd.startswith(str(self.root)) and int(entry.parts[2]) != os.getpid():
                found.append(int(entry.parts[2]))
        return found

    def finish(self, code: int = 0, workers: tuple[int, ...] = (0, 1)) -> None:
        """Lets the programs end, and waits until that is noted."""
        for index in workers:
            self.write(index, "finish.tmp", str(code))
            # At once, so that no program reads half of it.
            (self.home(index) / "finish.tmp").rename(self.home(index) / "finish")
        self.wait(lambda: all((self.run_of(i) / "exit_code").exists() for i in workers))
        for index in workers:
            (self.home(index) / "finish").unlink()

    def wait(self, condition) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture(scope="session")
def tiny_checkout(tmp_path_factory):
    """A git checkout that is quick to push, with the real launch/setup.sh."""
    root = tmp_path_factory.mktemp("checkout")
    files = {
        "simclr_jax/__init__.py": "version = 1\n",
        "simclr_jax/a-b.py": "",
        "simclr_jax/a/c.py": "sorted = 'by bytes'\n",
        "configs/with space.py": "x = 1\n",
        "configs/Z.py": "",
        "pyproject.toml": "[project]\n",
        "requirements.txt": "jax\n",
        "launch/setup.sh": (ROOT / "launch/setup.sh").read_text(),
        "secret.txt": "not tracked",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    tracked = [name for name in files if name != "secret.txt"]
    for arguments in (["init", "-q"], ["add", *tracked]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    return root


@pytest.fixture
def world(tmp_path, monkeypatch, tiny_checkout):
    made = World(tmp_path / "world")
    monkeypatch.setenv("FAKE", str(made.root))
    monkeypatch.setenv("HOME", str(made.root / "user"))
    monkeypatch.setenv("PATH", f"{made.root}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(checkout, "ROOT", tiny_checkout)
    monkeypatch.setattr(job, "_POLL_SECS", 0.1)
    monkeypatch.setattr(worker, "SHARED_WAIT_SECS", 0.5)
    yield made
    made.end()


@pytest.fixture(scope="session")
def prepared_workers(tmp_path_factory, tiny_checkout):
    """What `push` and `install` leave on two workers."""
    made = World(tmp_path_factory.mktemp("prepared") / "world")
    made.slice("READY")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE", str(made.root))
        patch.setenv("PATH", f"{made.root}/bin:{os.environ['PATH']}")
        patch.setattr(checkout, "ROOT", tiny_checkout)
        assert tpu.main(["push", "--name=n", "--zone=z"]) == 0
        assert tpu.main(["install", "--name=n", "--zone=z"]) == 0
    return made.root / "workers"


@pytest.fixture
def ready(world, prepared_workers):
    """A slice `n` with code and environment on both workers, as hosts h0 and h1."""
    shutil.copytree(prepared_workers, world.root / "workers", dirs_exist_ok=True)
    world.slice("READY")
    return world


@pytest.fixture
def script(monkeypatch):
    """Makes the waits of `watch` call one function after the other instead."""

    def use(*steps, clock=time.monotonic):
        left = list(steps)

        def sleep(seconds):
            assert left, "watch goes on longer than the test expects"
            left.pop(0)()

        patched = types.SimpleNamespace(
            sleep=sleep, monotonic=clock, strftime=time.strftime
        )
        monkeypatch.setattr(supervise, "time", patched)
        return left

    return use
