"""Cores and memory of a process: fake cgroups, neighbours, and a real affinity."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from jobs import ROOT, run

from simclr_jax import host_resources
from simclr_jax.host_resources import Claim, Limit

GIB = 2**30
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
CORES = os.sched_getaffinity(0)
# Below what any machine that runs the tests has.
SMALL, TINY = 200 * 2**20, 100 * 2**20


def tree(root, files, *, groups, mounts):
    """A file system with control groups."""
    described = {
        "proc/self/cgroup": "\n".join(groups),
        "proc/self/mountinfo": "\n".join(
            f"3{i} 23 0:2{i} {mounted} {point} rw shared:9 - {kind} none rw,{options}"
            for i, (mounted, point, kind, options) in enumerate(mounts)
        ),
        "proc/sys/kernel/random/boot_id": "the-machine\n",
    }
    for name, text in (described | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def mine(root):
    own = host_resources.read_claim(root)
    return host_resources.share(own, [own])


V2 = [("/", "/proc", "proc", "x"), ("/", "/sys/fs/cgroup", "cgroup2", "nsdelegate")]


def version_2(root, files, group="/"):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    return tree(root, files, groups=[f"0::{group}"], mounts=V2)


def test_without_limits_it_is_the_machine(tmp_path):
    for root in (
        tmp_path,  # no /proc at all
        version_2(tmp_path / "2", {"cpu.max": "max 100000", "memory.max": "max\n"}),
    ):
        found = mine(root)
        assert found.cpus == len(CORES)
        assert found.memory_bytes == MACHINE
        assert found.memory_source.endswith(" MiB of this machine")


def test_limits_of_a_container_count(tmp_path):
    found = mine(
        version_2(tmp_path, {"cpu.max": "50000 100000", "memory.max": f"{SMALL}\n"})
    )
    assert found.cpus == 1
    assert found.memory_bytes == SMALL
    path = tmp_path / "sys/fs/cgroup/memory.max"
    assert found.memory_source == f"the 200 MiB of {path}"


@pytest.mark.parametrize("tight", ["job", "job/step", "job/step/task"])
def test_the_tightest_group_up_the_tree_counts(tmp_path, tight):
    files = {
        f"{group}/memory.max": f"{TINY if group == tight else SMALL}"
        for group in ("job", "job/step", "job/step/task")
    }
    files["job/cpu.max"] = "400000 200000"
    root = version_2(tmp_path, files, "/job/step/task")
    assert mine(root).memory_bytes == TINY
    (limit,) = host_resources.read_claim(root).processors
    assert limit.amount == 2.0


@pytest.mark.parametrize("group", ["/../../elsewhere", "/not/mounted/here"])
def test_a_group_outside_of_the_visible_tree_is_its_root(tmp_path, group):
    root = version_2(tmp_path, {"memory.max": f"{SMALL}"}, group)
    assert mine(root).memory_bytes == SMALL


@pytest.mark.parametrize(
    ("mounted", "folder"),
    [
        ("/", "job_7/task_0"),  # the whole tree is visible
        ("/job_7/task_0", ""),  # only the own group is, at the mount
    ],
)
def test_version_1_has_a_tree_for_each_controller(tmp_path, mounted, folder):
    def files(memory, quota):
        memory, cpu = (
            (f"sys/fs/cgroup/{c}/{folder}") for c in ("memory", "cpu,cpuacct")
        )
        return {
            f"{memory}/memory.limit_in_bytes": f"{limit}\n",
            f"{cpu}/cpu.cfs_quota_us": f"{quota}\n",
            f"{cpu}/cpu.cfs_period_us": "100000\n",
        }

    groups = [
        "9:name=systemd:/",
        "4:memory:/job_7/task_0",
        "3:cpu,cpuacct:/job_7/task_0",
        "2:pids:/",
    ]
    mounts = [
        ("/", "/sys/fs/cgroup/pids", "cgroup", "pids"),
        (mounted, "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct"),
        (mounted, "/sys/fs/cgroup/memory", "cgroup", "memory"),
    ]
    for limit, quota, memory, cpus in (
        (SMALL, 50_000, SMALL, 1),
        (9223372036854771712, -1, MACHINE, len(CORES)),  # as where nothing is limited
    ):
        root = tree(tmp_path, files(limit, quota), groups=groups, mounts=mounts)
        found = mine(root)
        assert (found.memory_bytes, found.cpus) == (memory, cpus)


def claim(cores, *, host="here", quota=(), memory=()):
    limits = [Limit(group, amount, "FILE") for group, amount in memory]
    return Claim(
        host=host,
        cores=tuple(cores),
        processors=tuple(Limit(group, amount, "FILE") for group, amount in quota),
        memory=(*limits, Limit("machine", 512 * GIB, "this machine")),
    )


def shares(claims):
    found = [host_resources.share(own, claims) for own in claims]
    return [x.cpus for x in found], [x.memory_bytes // GIB for x in found]


def test_processes_that_may_run_anywhere_divide_the_cores():
    claims = [claim(range(64)) for _ in range(8)]
    assert shares(claims) == ([8] * 8, [64] * 8)
    found = host_resources.share(claims[0], claims)
    assert found.memory_source == "the 524,288 MiB of this machine for 8 processes"


def test_pinned_processes_keep_their_cores():
    claims = [claim(range(8 * i, 8 * i + 8)) for i in range(8)]
    assert shares(claims)[0] == [8] * 8


def test_two_sockets_are_divided_one_by_one():
    claims = [claim(range(32))] * 3 + [claim(range(32, 64))]
    assert shares(claims)[0] == [11, 11, 11, 32]


def test_a_limit_is_divided_by_those_under_it():
    # Two tasks with 16 GiB each in a job of 24; another job of the node is not told of.
    claims = [
        claim(range(64), memory=[(f"task{i}", 16 * GIB), ("job", 24 * GIB)])
        for i in range(2)
    ]
    assert shares(claims)[1] == [12, 12]
    own = [claim(range(64), memory=[(f"task{i}", 16 * GIB)]) for i in range(2)]
    assert shares(own)[1] == [16, 16]
    quota = [claim(range(64), quota=[("job", 12.0)]) for _ in range(3)]
    assert shares(quota)[0] == [4] * 3
    quota = [claim(range(64), quota=[(f"task{i}", 12.0)]) for i in range(3)]
    assert shares(quota)[0] == [12] * 3


def test_there_is_always_a_core():
    assert shares([claim([0])] * 5)[0] == [1] * 5


def test_a_claim_that_has_changed_since_is_no_error():
    moved = claim([5, 6], memory=[("new", GIB)], quota=[("new", 1.0)])
    found = host_resources.share(moved, [claim([0])] * 2)
    assert (found.cpus, found.memory_bytes) == (1, GIB)


def test_a_claim_survives_json():
    before = host_resources.read_claim()
    text = json.dumps(dataclasses.asdict(before))
    assert Claim.from_json(json.loads(text)) == before


def test_a_real_affinity_counts():
    if shutil.which("taskset") is None:
        pytest.skip("taskset is not installed")
    core = min(CORES)
    program = "from simclr_jax import host_resources as h; print(h.num_cpus())"
    command = ["taskset", "-c", str(core), sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.slow
def test_processes_of_one_host_tell_each_other():
    job = str(pathlib.Path(__file__).with_name("share_job.py"))
    for code, output in run([job], num_processes=2, devices_each=1):
        assert code == 0, output
        told = json.loads(output.splitlines()[-1])
        assert told["cpus"] == max(round(len(CORES) / 2), 1)
        assert told["memory_bytes"] <= MACHINE // 2
        assert told["memory_source"].endswith(" for 2 processes")
