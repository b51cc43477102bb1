"""launch/hosts.py: a run on hosts that ssh reaches."""

import hosts
import pytest

TWO = "--hosts=h0,h1"


def run(command: str, *options: str, program: list[str] | None = None) -> int:
    after = [] if program is None else ["--", *program]
    return hosts.main([command, *options, *after])


def program(world) -> list[str]:
    return [f"--workdir={world.root}/shared/a", '--config=it\'s a "b"']


def test_life_of_a_run(world, capsys):
    options = (TWO, "--user=me", "--ssh_option=Port=2222")
    assert run("push", *options) == 0
    assert run("install", *options, "--accelerator=cuda") == 0
    assert (world.home(1) / "pip").read_text().strip().endswith("jax[cuda13]")
    assert run("start", *options, "--verify_secs=0.2", program=program(world)) == 0
    for index in range(2):
        assert world.arguments(index) == [
            *program(world),
            "--coordinator_address=h0:8476",
            "--num_processes=2",
            f"--process_id={index}",
        ]
    capsys.readouterr()
    assert run("status", *options) == 0
    assert "worker 1 (h1): running" in capsys.readouterr().out
    assert run("logs", *options) == 0
    assert "[worker 1 (h1)] step 1 of worker 1" in capsys.readouterr().out
    assert run("stop", *options) == 0
    assert not world.programs(0)
    assert not world.programs(1)

    for call in world.calls():
        assert call[0] in ("ssh", "scp")
        assert call[call.index("Port=2222") - 1] == "-o"
        assert "BatchMode=yes" in call, "nothing may wait for a password"
    assert {call[-2] for call in world.calls() if call[0] == "ssh"} == {
        "me@h0",
        "me@h1",
    }
    targets = [call[-1] for call in world.calls() if call[0] == "scp"]
    assert sorted(target.partition(":")[0] for target in targets) == ["me@h0", "me@h1"]


def test_the_cpu_needs_no_more_than_the_requirements(world):
    assert run("push", TWO) == 0
    assert run("install", TWO, "--accelerator=cpu") == 0
    assert "jax" not in (world.home(0) / "pip").read_text()


def test_the_coordinator_can_have_another_address(ready):
    address = "--coordinator_address=10.0.0.1:99"
    assert run("start", TWO, address, "--verify_secs=0.1", program=program(ready)) == 0
    assert address in ready.arguments(1)


def test_one_host_that_fails_stops_the_others(ready, capsys):
    ready.behave(0, "exit 2")
    assert run("start", TWO, "--verify_secs=60", program=program(ready)) == 1
    said = capsys.readouterr().err
    assert "worker 0 (h0): failed (exit code 2)" in said
    assert "The others were stopped: worker 1 (h1)" in said
    assert not ready.programs(1)


def test_hosts_come_from_a_file_too(world, capsys):
    path = world.root / "hosts"
    path.write_text("# the pool\nh1  # first\n\nh0\n")
    assert run("status", f"--hosts_file={path}") == 1
    said = capsys.readouterr().out
    assert said.index("worker 0 (h1): not started") < said.index("worker 1 (h0)")


@pytest.mark.parametrize("option", ["--hosts=h1,h0,", "--hosts=,h1, h0"])
def test_a_comma_too_many_does_no_harm(world, capsys, option):
    assert run("status", option) == 1
    said = capsys.readouterr().out
    assert said.index("worker 0 (h1)") < said.index("worker 1 (h0)")
    assert "worker 2" not in said


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("fd00::1", "[fd00::1]"),
        ("node1", "node1"),
        ("10.0.0.2", "10.0.0.2"),
    ],
)
def test_a_port_follows_brackets_around_ipv6(world, capsys, host, address):
    options = (f"--hosts={host},h1", "--dry_run", "--user=me")
    assert run("start", *options, program=program(world)) == 0
    said = capsys.readouterr().out
    assert said.count(f"--coordinator_address={address}:8476") == 2
    assert f" me@{host} " in said, "which ssh takes as it is"
    assert run("push", *options) == 0
    assert f"me@{address}:simclr_jax_push" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--hosts=", "must name at least one host"),
        ("--hosts=,", "must name at least one host"),
        ("--hosts=a,-oProxyCommand=x", "must be a host's name"),
        ("--hosts=a,b,a", "only once"),
        ("--hosts_file=/nowhere", "--hosts_file=/nowhere"),
    ],
)
def test_bad_hosts_are_refused(world, capsys, option, words):
    assert run("status", option) == 1
    assert words in capsys.readouterr().err
    assert world.calls() == []


@pytest.mark.slow
def test_watch_starts_again_and_does_not_make_hosts(ready, script, capsys):
    def lose():
        ready.fail("ssh-1", "no route to host")

    def back():
        ready.heal("ssh-1")
        ready.finish(134)

    now = [0.0]

    def wait():
        now[0] += 300

    long = [wait] * 12  # lost more often than restarts are allowed
    script(lose, *long, back, ready.finish, clock=lambda: now[0])
    options = (TWO, "--accelerator=cpu", "--verify_secs=0.2", "--max_restarts=2")
    assert run("watch", *options, program=program(ready)) == 0
    said = capsys.readouterr().out
    assert "1 running, 1 unreachable" in said
    assert said.count("gone: no answer for 600 s") > 2
    assert "the hosts are yours to bring back" in said
    assert "worker 0 failed (exit code 134)" in said
    assert [ready.starts(index) for index in range(2)] == [2, 2]


def test_hosts_may_share_a_home(ready):
    # Both are worker 0's home; the run's files are named after the host.
    shared = ready.root / "workers/1"
    ready.behave(0, "exit 0")
    for path in sorted(shared.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    shared.rmdir()
    shared.symlink_to(ready.root / "workers/0")
    options = (TWO, "--verify_secs=0.2")
    assert run("start", *options, program=program(ready)) == 0
    runs = ready.home(0) / "simclr_jax_run"
    assert sorted(path.name for path in runs.iterdir()) == ["host0", "host1"]


@pytest.mark.parametrize("command", ["push", "start", "stop", "watch"])
def test_a_dry_run_shows_all_and_does_nothing(world, capsys, command):
    passes = command in ("start", "watch")
    options = ["--accelerator=cuda"] if command == "watch" else []
    after = ["--workdir=/shared/a"] if passes else None
    assert run(command, TWO, "--dry_run", *options, program=after) == 0
    assert world.calls() == []
    assert not list((world.root / "workers").iterdir())
    said = capsys.readouterr().out
    assert " h0 " in said
    assert " h1 " in said
    assert ("--process_id=1" in said) == passes
