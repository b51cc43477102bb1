"""The processors and the memory that this process may use, which the machine's are not.

A scheduler or a container gives a process some cores (its CPU affinity) and limits the
groups of processes that it is in (cgroups). What several processes of a job share on
one host is divided among them: each of the cores by the processes that may run on it,
each limit of a group by those in the group. Where a launcher gave every process cores
and a limit of its own, nothing is left to divide.
"""

import dataclasses
import os
import pathlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

_ROOT = pathlib.Path("/")
_MIB = 2**20
# Version 1 of cgroups writes about 2^63 where there is no limit.
_UNLIMITED = 2**60


class Limit(NamedTuple):
    """An amount that a group of processes may use together.

    Attributes:
      group: names the group, the same in all its processes.
      amount: processors, or bytes.
      source: where it stands, for people.
    """

    group: str
    amount: float
    source: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a process may use if it is alone.

    Attributes:
      host: the machine, the same for all its processes.
      cores: numbers of those that it may run on.
      processors: limits of processor time.
      memory: limits of memory, that of the machine among them.
    """

    host: str
    cores: tuple[int, ...]
    processors: tuple[Limit, ...]
    memory: tuple[Limit, ...]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Claim":
        """The inverse of `dataclasses.asdict`, also after JSON."""
        return cls(
            host=value["host"],
            cores=tuple(value["cores"]),
            processors=tuple(Limit(*limit) for limit in value["processors"]),
            memory=tuple(Limit(*limit) for limit in value["memory"]),
        )


@dataclasses.dataclass(frozen=True)
class Share:
    """What a process should use beside its neighbours.

    Attributes:
      cpus: threads that can run at a time, at least 1.
      memory_bytes: of memory.
      memory_source: where that number comes from, for messages.
    """

    cpus: int
    memory_bytes: int
    memory_source: str


# Of the processes of this job on this host; empty where there is only this one.
_neighbours: tuple[Claim, ...] = ()


def share_with(claims: Sequence[Claim]) -> None:
    """Divides from now on.

    Args:
      claims: of all processes of the job on this host, this one included.
    """
    global _neighbours
    _neighbours = tuple(claims)


def num_cpus() -> int:
    """How many threads of this process can run at a time."""
    return mine().cpus


def mine() -> Share:
    """This process's share."""
    own = read_claim()
    return share(own, _neighbours or (own,))


def share(own: Claim, claims: Sequence[Claim]) -> Share:
    """The share of one process.

    Args:
      own: its claim.
      claims: of all processes on its host, `own` among them.
    """
    on_core = Counter(core for claim in claims for core in claim.cores)
    # An affinity or a limit may have changed since the claims were made.
    cores = sum(1 / max(on_core[core], 1) for core in own.cores)
    times = [x.amount / _users(x, claims, "processors") for x in own.processors]
    memory = min(own.memory, key=lambda x: x.amount / _users(x, claims, "memory"))
    users = _users(memory, claims, "memory")
    source = f"the {memory.amount / _MIB:,.0f} MiB of {memory.source}"
    return Share(
        cpus=max(round(min([cores, *times])), 1),
        memory_bytes=int(memory.amount / users),
        memory_source=source if users == 1 else f"{source} for {users} processes",
    )


def _users(limit: Limit, claims: Sequence[Claim], what: str) -> int:
    """How many processes are in a limit's group."""
    groups = [{other.group for other in getattr(claim, what)} for claim in claims]
    return max(sum(limit.group in names for names in groups), 1)


def read_claim(root: pathlib.Path = _ROOT) -> Claim:
    """This process's claim.

    Args:
      root: of the file system; tests have others.
    """
    processors: list[Limit] = []
    memory: list[Limit] = []
    for version, controllers, directory in _groups(root):
        read_cpu, read_memory = _READERS[version]
        for controller, read, found in (
            ("cpu", read_cpu, processors),
            ("memory", read_memory, memory),
        ):
            if controller in controllers and (limit := _read(read, directory)):
                found.append(limit)
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    memory.append(Limit("machine", page * pages, "this machine"))
    return Claim(_host(root), _cores(), tuple(processors), tuple(memory))


def _cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))  # macOS


def _host(root: pathlib.Path) -> str:
    # Containers of one machine may have names of their own, and machines the same name.
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _groups(root: pathlib.Path) -> Iterator[tuple[int, set[str], pathlib.Path]]:
    """(version, controllers, directory) of this process's cgroups, inner ones first."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return  # not Linux
    paths = {names: path for _, names, path in (m.split(":", 2) for m in memberships)}
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mounted, point = before.split(" ")[3:5]
        if kind == "cgroup2" and "" in paths:
            version, controllers, path = 2, {"cpu", "memory"}, paths[""]
        elif kind == "cgroup":
            version, controllers = 1, {"cpu", "memory"} & set(options.split(","))
            path = next((paths[p] for p in paths if controllers & {*p.split(",")}), "/")
        else:
            continue
        top = root / point.lstrip("/")
        # A container may see no more than the tree below its own group.
        inside = pathlib.PurePosixPath(path)
        seen = inside.is_relative_to(mounted) and ".." not in inside.parts
        directory = top / (inside.relative_to(mounted) if seen else ".")
        for group in (directory, *directory.parents):
            yield version, controllers, group
            if group == top:
                break


def _read(
    read: Callable[[pathlib.Path], tuple[float, str] | None], directory: pathlib.Path
) -> Limit | None:
    """A limit of a group; None if there is none, or no such file."""
    try:
        found, status = read(directory), directory.stat()
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    amount, name = found
    group = f"{status.st_dev}:{status.st_ino}"
    return Limit(group, amount, str(directory / name))


def _cpu_1(directory: pathlib.Path) -> tuple[float, str] | None:
    quota = int((directory / "cpu.cfs_quota_us").read_text())
    period = int((directory / "cpu.cfs_period_us").read_text())
    return (quota / period, "cpu.cfs_quota_us") if quota > 0 else None


def _memory_1(directory: pathlib.Path) -> tuple[float, str] | None:
    limit = int((directory / "memory.limit_in_bytes").read_text())
    return (limit, "memory.limit_in_bytes") if limit < _UNLIMITED else None


def _cpu_2(directory: pathlib.Path) -> tuple[float, str] | None:
    quota, period = (directory / "cpu.max").read_text().split()
    return None if quota == "max" else (int(quota) / int(period), "cpu.max")


def _memory_2(directory: pathlib.Path) -> tuple[float, str] | None:
    limit = (directory / "memory.max").read_text().strip()
    return None if limit == "max" else (int(limit), "memory.max")


_READERS = {1: (_cpu_1, _memory_1), 2: (_cpu_2, _memory_2)}
