"""launch/tpu.py: the life of a slice and of a run on it."""

import os
import signal
import subprocess
import sys

import pytest
import tpu
from conftest import ROOT

SLICE = ("--name=n", "--zone=z")
KIND = ("--accelerator_type=v5litepod-16", "--version=v2-alpha")
# What shells like to take apart.
ODD = ["--config=a b.py:50x1", '--config.note=it\'s "$HOME" `id` \\ *\n#', "--x=ä;&|"]


def run(command: str, *options: str, program: list[str] | None = None) -> int:
    after = [] if program is None else ["--", *program]
    return tpu.main([command, *SLICE, *options, *after])


def program(world, *more: str) -> list[str]:
    return [f"--workdir={world.root}/shared/run a", *more]


# For a start of which one worker ends: seen at once, however busy this machine is.
LONG = "--verify_secs=60"


def start(world, *options: str) -> int:
    return run("start", "--verify_secs=0.2", *options, program=program(world))


@pytest.mark.parametrize(
    ("capacity", "words"),
    [
        ("on-demand", ["tpu-vm", "create", "n", "--version=v2-alpha"]),
        ("spot", ["tpu-vm", "create", "n", "--version=v2-alpha", "--spot"]),
        ("queued", ["--node-id=n", "--runtime-version=v2-alpha"]),
        ("queued-spot", ["--node-id=n", "--runtime-version=v2-alpha", "--spot"]),
    ],
)
def test_create_asks_for_the_capacity(world, capsys, capacity, words):
    options = (f"--capacity={capacity}", "--project=p", "--create_option=--network=w")
    assert run("create", *KIND, *options) == 0
    call = world.calls()[0]
    group = "queued-resources" if "queued" in capacity else "tpu-vm"
    assert call[:5] == ["gcloud", "compute", "tpus", group, "create"]
    assert set(words) <= set(call)
    assert ("--spot" in call) == ("spot" in capacity)
    assert {"--zone=z", "--project=p", "--accelerator-type=v5litepod-16"} <= set(call)
    assert "--network=w" in call
    said = capsys.readouterr().out
    assert "charged for while it is" in said
    assert "tpu.py delete --name=n --zone=z --project=p --yes" in said


def test_a_failed_create_says_what_costs(world, capsys):
    world.fail("tpu-vm-create", "quota")
    assert run("create", *KIND) == 1
    said = capsys.readouterr().err
    assert "quota" in said
    assert "Nothing of slice n in z exists" in said

    world.slice("CREATING")
    assert run("create", *KIND) == 1
    said = capsys.readouterr().err
    assert "Still there, and charged for while it is: slice n in z" in said
    assert "CREATING" in said

    world.fail("tpu-vm-describe", "no network")
    assert run("create", *KIND) == 1
    assert "perhaps slice n in z (gcloud did not say" in capsys.readouterr().err


def test_life_of_a_run(world, capsys):
    world.workers(3)
    assert run("create", *KIND) == 0
    assert run("push") == 0
    assert run("install", "--prepare=echo it\\'s > prepared") == 0
    for index in range(3):
        home = world.home(index)
        assert (home / "prepared").read_text() == "it's\n"
        added = (home / "pip").read_text().splitlines()[-1]
        assert added.endswith(" --editable . jax[tpu]"), "within our limits"
        assert "--upgrade" not in added, "the tested version of JAX stays"
        assert (home / "simclr_jax/configs/with space.py").exists()
        assert not (home / "simclr_jax/secret.txt").exists()
        assert not list(home.glob("*.tar.gz"))
    capsys.readouterr()

    arguments = program(world, *ODD)
    assert run("start", "--verify_secs=0.3", program=arguments) == 0
    said = capsys.readouterr().out
    assert "Started on all 3 workers" in said
    assert "push" not in said, "the code is that of the checkout"
    for index in range(3):
        assert world.arguments(index) == arguments
        assert len(world.programs(index)) == 1
        assert os.getsid(world.pid(index)) == world.pid(index), "detached"

    assert run("status") == 0
    said = capsys.readouterr().out
    assert "slice n in z: ready" in said
    assert "worker 2: running | step 1 of worker 2" in said

    assert run("logs", "--lines=1") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"[worker {index}] step 1 of worker {index}" for index in range(3)
    ]

    assert run("stop") == 0
    assert capsys.readouterr().out.count("stopped") == 3
    assert not any(world.programs(index) for index in range(3))
    assert world.exit_code(2) == "143"
    assert run("stop") == 0
    assert capsys.readouterr().out.count("nothing ran") == 3
    assert run("status") == 1
    assert "stopped (exit code 143)" in capsys.readouterr().out

    assert run("restart", "--verify_secs=0.3", program=arguments) == 0
    assert [world.starts(index) for index in range(3)] == [2, 2, 2]
    world.finish(0, workers=(0, 1, 2))
    assert run("status") == 0
    assert "worker 1: finished" in capsys.readouterr().out

    assert run("delete") == 1
    assert "--yes" in capsys.readouterr().err
    assert "tpu-vm delete" not in world.verbs()
    assert run("delete", "--yes") == 0
    assert "Nothing of slice n in z is left" in capsys.readouterr().out
    assert run("status") == 1


def test_delete_takes_the_queued_resource_too(world, capsys):
    world.slice("PREEMPTED")
    world.queued("SUSPENDED")
    assert run("delete", "--yes") == 0
    assert world.verbs() == ["queued-resources delete"]
    assert not (world.root / "slices/n").exists()
    assert run("delete", "--yes") == 0, "nothing to delete is no error"


def test_a_failed_delete_says_what_remains(world, capsys):
    world.slice("READY")
    world.fail("tpu-vm-delete", "permission denied")
    assert run("delete", "--yes") == 1
    said = capsys.readouterr().err
    assert "permission denied" in said
    assert "Still there" in said


@pytest.mark.parametrize("what", ["scp", "--editable", "jax[tpu]"])
def test_a_failed_step_names_the_worker_and_what_costs(world, capsys, what):
    world.slice("READY")
    if what == "scp":
        world.fail("scp-1", "disk full")
        assert run("push") == 1
    else:
        assert run("push") == 0
        world.write(1, "no_pip", what)
        assert run("install") == 1
    said = capsys.readouterr().err
    assert "worker 1" in said
    assert "worker 0" not in said
    assert "Still there, and charged" in said
    assert "delete --name=n --zone=z --yes" in said


def test_one_worker_that_fails_stops_the_others(ready, capsys):
    ready.behave(1, "exit 1")
    assert start(ready, LONG) == 1
    said = capsys.readouterr().err
    assert "worker 1: failed (exit code 1)" in said
    assert "worker 1 cannot go on" in said, "the end of its log"
    assert "The others were stopped: worker 0" in said
    assert "Still there, and charged" in said
    assert ready.starts(0) == 1
    assert not ready.programs(0)


def test_a_worker_killed_at_once_stops_the_others(ready, capsys):
    ready.write(
        1,
        "simclr_jax/.venv/bin/python",
        "#!/bin/bash\n[[ $1 == -c ]] && exec "
        f'{ready.root}/worker_bin/venv_python "$@"\nkill -9 $PPID\n',
    )
    assert start(ready, LONG) == 1
    said = capsys.readouterr().err
    assert "worker 1: died" in said
    assert "The others were stopped: worker 0" in said
    assert not ready.programs(0)


def test_a_worker_that_cannot_start_stops_the_others(ready, capsys):
    # The place of the run's files is taken by a file.
    ready.write(1, "simclr_jax_run", "")
    assert start(ready) == 1
    said = capsys.readouterr()
    assert "worker 1: did not start" in said.err
    assert "worker 0: stopped" in said.out
    assert not ready.programs(0)


def test_a_start_without_an_answer_is_stopped_too(ready, capsys, monkeypatch):
    # Worker 1 starts, but the connection breaks before it can say so.
    monkeypatch.setattr("check.run", lambda *arguments: ready.fail("lost-1", once=True))
    assert start(ready) == 1
    said = capsys.readouterr()
    assert "worker 1: did not start: connection lost" in said.err
    assert "worker 1: stopped" in said.out
    assert ready.starts(1) == 1
    assert not ready.programs(0)
    assert not ready.programs(1)


@pytest.mark.slow
def test_a_run_that_was_there_first_is_left_alone(ready, capsys, monkeypatch):
    assert start(ready) == 0
    os.killpg(ready.pid(0), signal.SIGKILL)
    # As if worker 1's had been started right after the check.
    monkeypatch.setattr("check.run", lambda *arguments: None)
    assert start(ready) == 1
    assert (
        "worker 1: did not start: error: the run is already active"
        in capsys.readouterr().err
    )
    assert not ready.programs(0)
    assert ready.programs(1)
    assert ready.starts(1) == 1


def test_workers_that_cannot_be_stopped_are_named(ready, capsys, monkeypatch):
    ready.behave(1, "exit 1")
    stop = tpu.Job.stop

    def break_then_stop(*args, **settings):
        ready.fail("ssh-0", "connection lost")
        return stop(*args, **settings)

    monkeypatch.setattr(tpu.Job, "stop", break_then_stop)
    assert start(ready, LONG) == 1
    said = capsys.readouterr().err
    assert "worker 0: could not be stopped and may still run: connection lost" in said
    assert "The others were stopped" not in said
    assert ready.programs(0)


def test_start_refuses_where_the_run_goes_on(ready, capsys):
    assert start(ready) == 0
    pids = [ready.pid(index) for index in range(2)]
    assert start(ready) == 1
    assert "the run is already active" in capsys.readouterr().err
    assert [ready.pid(index) for index in range(2)] == pids
    assert all(ready.programs(index) for index in range(2))
    assert run("push") == 1
    assert run("install") == 1


def test_a_start_that_comes_twice_starts_once(ready):
    assert start(ready) == 0
    text = next(
        word.removeprefix("--command=")
        for call in ready.calls()
        for word in call
        if word.startswith("--command=") and "start_id" in word
    )
    home = ready.home(0)
    environment = {
        **os.environ,
        "HOME": str(home),
        "WORKER": "0",
        "PATH": f"{ready.root}/worker_bin:{os.environ['PATH']}",
    }
    again = subprocess.run(
        ["bash", "-c", text], cwd=home, env=environment, capture_output=True, text=True
    )
    assert "@started again" in again.stdout
    assert ready.starts(0) == 1


@pytest.mark.slow
def test_stop_ends_a_stubborn_program(ready, capsys):
    ready.behave(0, "stubborn")
    assert start(ready) == 0
    assert run("stop", "--grace_secs=1") == 0
    said = capsys.readouterr().out
    assert "worker 0: killed, as it did not end within 1 s" in said
    assert "worker 1: stopped" in said
    assert not ready.programs(0)
    assert ready.exit_code(0) == "137"


@pytest.mark.slow
def test_stop_ends_leftovers(ready, capsys):
    assert start(ready) == 0
    os.kill(ready.pid(0), signal.SIGKILL)
    ready.wait(lambda: len(ready.programs(0)) == 1)
    assert run("status") == 1
    assert "worker 0: died" in capsys.readouterr().out
    assert run("check") == 1
    assert "worker 0: left over, `stop` ends it: process" in capsys.readouterr().err
    assert run("stop") == 0
    assert not ready.programs(0)


def test_a_run_that_is_noted_nowhere_is_left_over(ready, capsys):
    assert start(ready) == 0
    (ready.run_of(0) / "pid").unlink()
    assert run("check") == 1
    assert "worker 0: left over" in capsys.readouterr().err
    assert run("stop") == 0
    assert not ready.programs(0)


@pytest.mark.slow
def test_stop_leaves_other_programs_of_the_checkout_alone(ready, capsys):
    other = ("--run_dir=other_run",)
    assert start(ready, *other) == 0
    (second,) = ready.programs(0)
    assert start(ready) == 0, "what belongs to another run is not left over"
    checkout = ready.home(0) / "simclr_jax"

    def by_hand(module: str) -> subprocess.Popen:
        # One that starts no children, which would be counted for a moment.
        words = ["-S", "-E", "-c", "import time; time.sleep(60)", "-m", module]
        return subprocess.Popen([sys.executable, *words], cwd=checkout)

    spared = [by_hand("simclr_jax.preview"), by_hand("simclr_jax.pretrainer")]
    names = ("pretrain", "doctor", "evaluate", "rehearse")
    ended = [by_hand(f"simclr_jax.{name}") for name in names]
    try:
        capsys.readouterr()
        assert run("check") == 1
        said = capsys.readouterr().err
        assert all(f"process {process.pid} " in said for process in ended)
        assert said.count("left over") == len(ended)
        assert run("stop") == 0
        assert [process.wait(10) for process in ended] == [-signal.SIGTERM] * 4
        assert [process.poll() for process in spared] == [None, None]
        assert second in ready.programs(0)
        assert run("status") == 1
        assert run("status", *other) == 0
    finally:
        for process in (*spared, *ended):
            process.kill()
            process.wait()
    assert run("stop", *other) == 0
    assert second not in ready.programs(0)


@pytest.mark.slow
def test_stop_does_not_kill_whoever_has_an_old_process_id(ready, capsys, monkeypatch):
    # After a reboot the noted process id is another's; and what is left over, such as a
    # process that waits for a share, cannot be killed.
    left = subprocess.Popen(
        ["bash", "-c", "sleep 60; :", "-m", "simclr_jax.pretrain"],
        cwd=ready.home(0) / "simclr_jax",
    )
    immune = ready.root / "immune.bash"
    immune.write_text(
        f'kill() {{ [[ $* == *" {left.pid}" ]] || builtin kill "$@"; }}\n'
    )
    monkeypatch.setenv("BASH_ENV", str(immune))
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    ready.write(0, "simclr_jax_run/host0/pid", f"{stranger.pid}\n")
    try:
        assert run("stop", "--grace_secs=0") == 1
        assert "does not end, not even by KILL" in capsys.readouterr().err
        assert stranger.poll() is None
    finally:
        for process in (left, stranger):
            process.kill()
            process.wait()


def test_check_tells_what_differs(ready, capsys):
    ready.write(1, "versions", "@version python 3.11\n@version jax 0.9\n")
    ready.write(1, "simclr_jax/simclr_jax/__init__.py", "version = 2\n")
    assert run("check", program=program(ready)) == 1
    said = capsys.readouterr().err
    assert "jax differs (`install` again): 0.10 on worker 0; 0.9 on worker 1" in said
    assert "code differs (`push` again)" in said
    assert "python differs" not in said


def test_check_notices_code_that_is_not_this_checkouts(ready, capsys):
    assert run("check", program=program(ready)) == 0
    assert "is not that of this checkout" not in capsys.readouterr().out
    for index in range(2):
        ready.write(index, "simclr_jax/configs/new.py", "")
    assert run("check", program=program(ready)) == 0
    assert "is not that of this checkout" in capsys.readouterr().out


def test_check_leaves_nothing_behind(ready):
    assert run("check", program=program(ready)) == 0
    assert not list((ready.root / "shared").iterdir())


def test_check_names_workers_that_are_not_ready(ready, capsys):
    ready.fail("ssh-1", "connection refused")
    assert start(ready) == 1
    said = capsys.readouterr().err
    assert "worker 1: was not reached, or is not ready: connection refused" in said
    assert ready.starts(0) == 0


def lock(world, index: int):
    path = world.root / "workers" / str(index) / "tmp/libtpu_lockfile"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    return path


def test_a_stale_lock_is_removed_and_said(ready, capsys):
    path = lock(ready, 1)
    assert run("check", program=program(ready)) == 0
    said = capsys.readouterr().out
    assert "worker 1: removed /tmp/libtpu_lockfile; no process held the chips" in said
    assert "worker 0: removed" not in said
    assert not path.exists()


def test_a_lock_with_a_holder_stays(ready, capsys):
    path = lock(ready, 1)
    chip = ready.root / "workers/1/dev/accel0"
    chip.write_text("")
    with chip.open() as held:
        holder = subprocess.Popen(["sleep", "60"], stdin=held)
        try:
            assert run("check", program=program(ready)) == 1
        finally:
            holder.kill()
            holder.wait()
    said = capsys.readouterr().err
    assert f"worker 1: the chips are held by process {holder.pid} sleep 60" in said
    assert "worker 0" not in said
    assert path.exists()


def test_a_lock_stays_where_holders_cannot_be_seen(ready, capsys):
    path = lock(ready, 1)
    ready.write(1, "no_sudo", "")
    assert run("check", program=program(ready)) == 1
    assert "cannot be removed without sudo" in capsys.readouterr().err
    assert path.exists()


def test_check_notices_a_workdir_that_is_not_shared(ready, capsys):
    # Relative to each worker's own checkout.
    assert run("start", program=["--workdir", "runs/a"]) == 1
    said = capsys.readouterr().err
    assert "worker 1 does not see what worker 0 wrote in runs/a" in said
    assert "worker 0 does not see" not in said
    assert ready.starts(0) == 0
    assert not (ready.home(0) / "simclr_jax/runs/a").exists()


def test_check_notices_a_workdir_that_cannot_be_written(ready, capsys):
    (ready.root / "file").write_text("")
    assert run("start", program=[f"--workdir={ready.root}/file/run"]) == 1
    assert "worker 0: cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--workdir: must be given"),
        (["--config=x"], "--workdir: must be given"),
        (["--workdir=hdfs://a/run"], "--workdir=hdfs://a/run: must be a path that all"),
    ],
)
def test_start_needs_a_workdir(ready, capsys, arguments, words):
    assert run("start", program=arguments) == 1
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_a_bucket_starts(ready, capsys):
    (ready.root / "gs:/bucket").mkdir(parents=True)
    assert run("start", program=["--workdir=gs://bucket/runs/a"]) == 0
    assert ready.arguments(1)[0] == "--workdir=gs://bucket/runs/a"
    assert not list((ready.root / "gs:/bucket").iterdir())


def test_check_notices_a_bucket_that_cannot_be_written_or_is_another(ready, capsys):
    workdir = ["--workdir=gs://bucket/runs/a"]
    assert run("check", program=workdir) == 1
    said = capsys.readouterr().err
    assert "worker 0: cannot write to gs://bucket/runs/a: error: --workdir=gs:" in said
    for name in ("bucket", "bucket-2"):
        (ready.root / "gs:" / name).mkdir(parents=True)
    ready.write(1, "no_access", "")
    assert run("start", program=workdir) == 1
    assert "worker 1: cannot write to gs://bucket/runs/a" in capsys.readouterr().err
    (ready.home(1) / "no_access").unlink()
    ready.write(1, "other_bucket", "")
    assert run("start", program=workdir) == 1
    assert "worker 1 does not see what worker 0 wrote" in capsys.readouterr().err
    assert ready.starts(0) == 0
    assert not list((ready.root / "gs:/bucket").iterdir())


def test_a_rehearsal_runs_on_all_workers_in_place_of_the_run(ready, capsys):
    assert run("start", "--rehearse", program=program(ready, "--config=a b")) == 0
    said = capsys.readouterr().out
    workdir = f"--workdir={ready.root}/shared/run a"
    assert f"[worker 1] ok   steps: {workdir} --config=a b" in said.splitlines()
    assert ready.starts(0) == 0
    ready.write(1, "ill", "")
    assert run("start", "--rehearse", program=program(ready)) == 1
    assert "the rehearsal failed on worker 1" in capsys.readouterr().err


def test_an_evaluation_runs_on_all_workers(ready, capsys):
    assert run("evaluate", program=program(ready, "--protocol=knn")) == 0
    said = capsys.readouterr().out
    workdir = f"--workdir={ready.root}/shared/run a"
    assert f"[worker 1] evaluated: {workdir} --protocol=knn" in said.splitlines()
    assert run("evaluate", program=["--protocol=knn"]) == 1
    assert "other arguments of simclr_jax.evaluate" in capsys.readouterr().err
    ready.write(1, "ill", "")
    assert run("evaluate", program=program(ready)) == 1
    assert "the evaluation failed on worker 1" in capsys.readouterr().err


def test_push_takes_away_what_is_tracked_no_more(ready, capsys):
    ready.write(0, "simclr_jax/.pushed", "configs/old file.py\n")
    ready.write(0, "simclr_jax/configs/old file.py", "")
    ready.write(0, "simclr_jax/runs/mine", "")
    assert run("push") == 0
    home = ready.home(0) / "simclr_jax"
    assert not (home / "configs/old file.py").exists()
    assert (home / "configs/with space.py").exists()
    assert (home / "runs/mine").exists()
    assert (home / ".venv/bin/python").exists()


def test_logs_can_be_followed_until_the_run_ends(ready, capsys):
    assert start(ready) == 0
    ready.write(0, "finish", "0")
    ready.write(1, "finish", "0")
    capsys.readouterr()
    assert run("logs", "--follow") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "[worker 0] step 1 of worker 0" in lines
    assert "[worker 1] step 1 of worker 1" in lines
    assert not any("Welcome" in line or "@" in line for line in lines)


def test_doctor_runs_on_all_workers(ready, capsys):
    assert run("doctor", program=["--workdir=/a b"]) == 0
    said = capsys.readouterr().out
    assert "[worker 1] the doctor was here: --workdir=/a b" in said
    ready.write(1, "ill", "")
    assert run("doctor") == 1
    assert "found problems on worker 1" in capsys.readouterr().err


def test_an_interrupted_start_says_what_goes_on(ready, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tpu.Job, "_verify", interrupt)
    assert start(ready) == 130
    said = capsys.readouterr().err
    assert "programs on the workers keep running" in said
    assert "Still there, and charged" in said


COMMANDS = {
    "create": KIND,
    "delete": (),
    "push": (),
    "install": (),
    "check": (),
    "doctor": (),
    "evaluate": (),
    "start": (),
    "logs": ("--follow",),
    "status": (),
    "stop": (),
    "restart": (),
    "watch": (*KIND, "--capacity=queued-spot"),
}
SHOWN = {
    "create": ["gcloud compute tpus tpu-vm create n"],
    "delete": ["queued-resources delete n --force", "tpu-vm delete n"],
    "push": ["would write: ", "tpu-vm scp ", "tar -xzf"],
    "install": ["bash launch/setup.sh", "requirement='jax[tpu]'"],
    "check": ["libtpu_lockfile", ".shared_"],
    "doctor": ["simclr_jax.doctor"],
    "evaluate": ["libtpu_lockfile", "simclr_jax.evaluate"],
    "start": ["libtpu_lockfile", ".shared_", "setsid", "'--config=a b'", "@state"],
    "logs": ["tail -n"],
    "status": ["tpu-vm describe n", "@state"],
    "stop": ["kill -TERM"],
    "restart": ["kill -TERM", "setsid"],
    "watch": ["queued-resources create n", "queued-resources delete n", "setsid"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_shows_all_and_does_nothing(world, capsys, command):
    passes = command in ("check", "doctor", "evaluate", "start", "restart", "watch")
    after = ["--workdir=/shared/a", "--config=a b"] if passes else None
    assert run(command, "--dry_run", *COMMANDS[command], program=after) == 0
    assert world.calls() == []
    assert not list((world.root / "workers").iterdir())
    said = capsys.readouterr().out
    for words in SHOWN[command]:
        assert words in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(world, capsys, command):
    with pytest.raises(SystemExit) as ended:
        tpu.main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--dry_run" in said
    assert "--zone" in said


def test_what_a_command_does_not_pass_on_is_refused(world, capsys):
    with pytest.raises(SystemExit) as ended:
        run("stop", program=["--workdir=a"])
    assert ended.value.code == 2
    assert "stop takes nothing after `--`" in capsys.readouterr().err


def test_places_with_odd_characters_are_refused(world, capsys):
    for path in ("a b", "/absolute", "-x", "$(id)"):
        assert run("push", f"--remote_dir={path}") == 1
        assert "--remote_dir, --run_dir: " in capsys.readouterr().err
    assert world.calls() == []


def test_the_first_contact_is_one_connection(ready):
    def connections() -> list[list[str]]:
        return [call for call in ready.calls() if call[4] == "ssh"]

    run("status")
    assert len(connections()) == 2
    ready.key.unlink()
    run("status")
    first, *others = connections()[2:]
    assert {"--worker=0", "--command=bash -c true"} <= set(first)
    assert len(others) == 2


def test_a_missing_gcloud_is_said(world, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(world.root / "nowhere"))
    assert run("status") == 1
    assert "gcloud: not installed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tpu", "hosts", "gke", "slurm"])
def test_scripts_run_without_any_package(name):
    done = subprocess.run(
        [sys.executable, "-E", "-s", "-S", str(ROOT / f"launch/{name}.py"), "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
