"""`watch`: what it starts again, and what it leaves alone."""

import os
import signal

import pytest
import supervise
import tpu
from cases import first
from job import State
from remote import LaunchError

KIND = ("--accelerator_type=v5litepod-16", "--version=v2-alpha")


def watch(world, *options: str) -> int:
    settings = ("--verify_secs=0.05", "--poll_secs=7", *options)
    program = [f"--workdir={world.root}/shared/a"]
    return tpu.main(["watch", "--name=n", "--zone=z", *KIND, *settings, "--", *program])


def starts(world) -> list[int]:
    return [world.starts(index) for index in range(2)]


def nothing() -> None:
    """Time passes."""


class Clock:
    """A clock that only `pass_` moves; called, it tells the seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float, then=nothing):
        """A step: time passes, then something happens."""

        def step():
            self.now += seconds
            then()

        return step


def test_a_fresh_slice_is_brought_to_its_end(world, script, capsys):
    world.slice("READY")
    script(nothing, world.finish)
    assert watch(world) == 0
    assert starts(world) == [1, 1]
    said = capsys.readouterr().out
    assert "fresh workers: restart 1 of 5" in said
    assert "pushing, installing, starting" in said
    assert "2 running | step 1 of worker 0" in said
    assert "2 finished | step 1 of worker 0" in said
    assert "Still there, and charged" in said


@pytest.mark.slow
def test_a_preempted_slice_is_made_again(ready, script, capsys):
    marker = ready.home(0) / "of the first slice"
    marker.write_text("")
    script(nothing, lambda: ready.slice("PREEMPTED"), ready.finish)
    assert watch(ready, "--capacity=spot") == 0
    verbs = ready.verbs()
    deleted, created = verbs.index("tpu-vm delete"), verbs.index("tpu-vm create")
    pushed = [i for i, verb in enumerate(verbs) if verb == "tpu-vm scp"]
    assert deleted < created < pushed[-1]
    assert len([i for i in pushed if i > created]) == 2
    assert not marker.exists()
    assert starts(ready) == [1, 1], "started on the new slice"
    created_call = next(call for call in ready.calls() if "create" in call)
    assert {"--spot", *KIND[:1]} - set(created_call) == {
        "--accelerator_type=v5litepod-16"
    }
    assert "--accelerator-type=v5litepod-16" in created_call
    said = capsys.readouterr().out
    assert "gone: PREEMPTED: restart" in said
    assert "deleting what is left" in said


@pytest.mark.parametrize("state", first(1, ["TERMINATED", "missing"]))
def test_a_lost_slice_is_made_again(ready, script, state):
    def lose():
        if state == "missing":
            (ready.root / "slices/n").unlink()
            for process in ready.processes():
                os.kill(process, signal.SIGKILL)
        else:
            ready.slice(state)

    script(lose, ready.finish)
    assert watch(ready) == 0
    assert "tpu-vm create" in ready.verbs()


def test_gcloud_that_does_not_answer_deletes_nothing(ready, script, capsys):
    script(
        lambda: ready.fail("tpu-vm-describe", "no network"),
        nothing,
        lambda: ready.heal("tpu-vm-describe"),
        ready.finish,
    )
    assert watch(ready) == 0
    assert not {"tpu-vm delete", "tpu-vm create"} & set(ready.verbs())
    assert starts(ready) == [1, 1]
    assert "unknown; gcloud: no network" in capsys.readouterr().out


def test_a_slice_lost_between_two_questions_ends_nothing(ready, script, monkeypatch):
    transport = tpu.Slice.transport
    answers = iter([tpu.LaunchError("slice n in z: PREEMPTED; must be READY")])

    def lose_once(self):
        for error in answers:
            raise error
        return transport(self)

    monkeypatch.setattr(tpu.Slice, "transport", lose_once)
    script(nothing, ready.finish)
    assert watch(ready) == 0
    assert "tpu-vm create" not in ready.verbs()


def test_a_worker_that_died_restarts_all(ready, script, capsys):
    def kill():
        os.kill(ready.programs(1)[0], signal.SIGKILL)
        ready.wait(lambda: (ready.run_of(1) / "exit_code").exists())

    script(kill, ready.finish)
    assert watch(ready) == 0
    assert starts(ready) == [2, 2]
    assert "worker 1 failed (exit code 137): restart" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_was_asked_to_end_is_gone_on_with(ready, script, capsys):
    script(lambda: ready.finish(143), ready.finish)
    assert watch(ready) == 0
    assert starts(ready) == [2, 2]
    assert "worker 0 stopped (exit code 143): restart 2" in capsys.readouterr().out


@pytest.mark.slow
def test_every_start_is_prepared_for(world, script, capsys):
    prepared = [world.home(index) / "prepared" for index in range(2)]

    def reboot():
        for index, path in enumerate(prepared):
            assert path.read_text() == "once\n", "not twice for one start"
            path.unlink()  # as a mount
            os.killpg(world.pid(index), signal.SIGKILL)

    world.slice("READY")
    script(reboot, world.finish)
    assert watch(world, f"--prepare=echo once >> {prepared[0].name}") == 0
    assert starts(world) == [2, 2]
    assert [path.read_text() for path in prepared] == ["once\n"] * 2
    assert "worker 0 died: restart 2" in capsys.readouterr().out


def test_nothing_starts_where_preparing_failed(ready, script, capsys):
    def kill():
        ready.finish(1)
        # The share is gone.
        ready.write(1, "away", "")

    script(kill, nothing)
    prepare = "--prepare=[[ ! -f away ]]"
    assert watch(ready, prepare, "--max_restarts=2") == 1
    assert starts(ready) == [1, 1]
    said = capsys.readouterr().out
    assert "worker 1: not prepared: error: the command of --prepare failed" in said


@pytest.mark.slow
def test_programs_get_time_to_save(ready, script, monkeypatch):
    graces = []
    stop = tpu.Job.stop

    def note(self, *, grace_secs, **settings):
        graces.append(grace_secs)
        stop(self, grace_secs=grace_secs, **settings)

    monkeypatch.setattr(tpu.Job, "stop", note)
    script(lambda: ready.finish(1), lambda: ready.finish(2, workers=(1,)))
    assert watch(ready) == 1
    assert graces == [30, 30], "for a restart, and for bad input"
    script(lambda: ready.finish(2))
    assert watch(ready, "--grace_secs=77") == 1
    assert set(graces[2:]) == {77}
    ready.behave(1, "exit 1")
    program = f"--workdir={ready.root}/shared/a"
    assert tpu.main(["start", "--name=n", "--zone=z", "--", program]) == 1
    assert graces[-1] == 30, "for the others of one that failed"


def test_bad_input_is_not_started_again(ready, script, capsys):
    script(lambda: ready.finish(2, workers=(1,)))
    assert watch(ready) == 1
    assert starts(ready) == [1, 1]
    assert not ready.programs(0), "the others are stopped"
    said = capsys.readouterr()
    assert "worker 1 ended with exit code 2" in said.err
    assert "step 1 of worker 1" in said.err, "the end of its log"
    assert "Still there, and charged" in said.err


def test_gives_up_after_restarts_in_a_row(ready, script, capsys):
    for index in range(2):
        ready.behave(index, "exit 1")
    script(nothing, nothing, nothing)
    assert watch(ready, "--max_restarts=2", "--verify_secs=60") == 1
    assert starts(ready) == [2, 2]
    said = capsys.readouterr().err
    assert "given up after 2 restarts in a row: worker 0 failed (exit code 1)" in said


@pytest.mark.slow
def test_half_an_hour_of_running_ends_a_row(ready, script):
    clock = Clock()
    crash = clock.pass_(1900, lambda: ready.finish(1))
    script(crash, crash, ready.finish, clock=clock)
    assert watch(ready, "--max_restarts=1") == 0
    assert starts(ready) == [3, 3]


def test_less_does_not_end_a_row(ready, script, capsys):
    clock = Clock()
    crash = clock.pass_(1700, lambda: ready.finish(1))
    script(crash, crash, clock=clock)
    assert watch(ready, "--max_restarts=1") == 1
    assert "given up after 1 restarts" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["start", "prepare"])
def test_hours_of_preparing_and_starting_do_not_count_as_running(
    ready, script, capsys, monkeypatch, method
):
    clock = Clock()

    def hang(*arguments, **settings):
        clock.now += 3600
        raise LaunchError("no answer within 3600 s")

    def crash():
        ready.finish(1)
        monkeypatch.setattr(tpu.Job, method, hang)

    again = clock.pass_(60)
    script(clock.pass_(60, crash), again, again, clock=clock)
    assert watch(ready, "--max_restarts=3") == 1
    said = capsys.readouterr()
    assert said.out.count("did not succeed: no answer within 3600 s") == 2
    assert "given up after 3 restarts" in said.err
    assert starts(ready) == [1, 1]


def test_the_time_to_start_does_not_count_as_running(ready, script, monkeypatch):
    clock = Clock()
    start = tpu.Job.start

    def slowly(self, *arguments, **settings):
        clock.now += 3600
        start(self, *arguments, **settings)

    monkeypatch.setattr(tpu.Job, "start", slowly)
    script(clock.pass_(60, lambda: ready.finish(1)), clock=clock)
    assert watch(ready, "--max_restarts=1") == 1
    assert starts(ready) == [1, 1]


def test_waiting_in_the_queue_does_not_count_as_running(world, script):
    clock = Clock()
    refused = clock.pass_(7200, lambda: world.queued("FAILED"))
    script(refused, refused, clock=clock)
    assert watch(world, "--capacity=queued", "--max_restarts=2") == 1


def test_waits_for_capacity_without_counting(world, script, capsys):
    world.fail("tpu-vm-create", 'There is no more capacity in the zone "z"')
    script(nothing, nothing, nothing, lambda: world.heal("tpu-vm-create"), world.finish)
    assert watch(world, "--capacity=spot", "--max_restarts=1") == 0
    assert "no machines yet" in capsys.readouterr().out
    assert starts(world) == [1, 1]


def test_a_refused_create_counts(world, script, capsys):
    world.fail("tpu-vm-create", "no such accelerator")
    script(nothing, nothing)
    assert watch(world, "--max_restarts=2") == 1
    assert "given up after 2 restarts" in capsys.readouterr().err


@pytest.mark.slow
def test_waits_in_the_queue(world, script, capsys):
    def granted():
        world.queued("ACTIVE")
        world.slice("READY")

    script(nothing, nothing, granted, world.finish)
    assert watch(world, "--capacity=queued-spot") == 0
    assert world.verbs()[0] == "queued-resources create"
    assert world.verbs().count("queued-resources create") == 1
    assert "queued: WAITING_FOR_RESOURCES" in capsys.readouterr().out


@pytest.mark.slow
def test_a_suspended_request_is_made_again(world, script):
    world.queued("SUSPENDED")
    script(lambda: world.slice("READY"), world.finish)
    assert watch(world, "--capacity=queued") == 0
    changes = [verb for verb in world.verbs() if "queued" in verb]
    assert changes == ["queued-resources delete", "queued-resources create"]


@pytest.mark.slow
def test_new_workers_may_take_a_while_to_answer(world, script, capsys):
    world.slice("READY")
    world.fail("ssh-1", "connection refused", once=True)
    script(nothing, nothing, world.finish)
    assert watch(world) == 0
    assert starts(world) == [1, 1]


def test_a_slice_that_never_answered_is_waited_for(world, script, capsys):
    clock = Clock()
    world.slice("READY")
    for index in range(2):
        world.fail(f"ssh-{index}", "connection refused")

    def boot():
        for index in range(2):
            world.heal(f"ssh-{index}")

    long = clock.pass_(3600)
    script(long, long, long, clock.pass_(60, boot), nothing, world.finish, clock=clock)
    assert watch(world) == 0
    assert starts(world) == [1, 1]
    assert not {"tpu-vm delete", "tpu-vm create"} & set(world.verbs())
    assert "2 unreachable | connection refused" in capsys.readouterr().out


@pytest.mark.slow
def test_a_slice_made_here_that_never_answers_is_made_again(world, script, capsys):
    clock = Clock()
    for index in range(2):
        world.fail(f"ssh-{index}", "connection refused")
    waits = [clock.pass_(15)] * (supervise._REACH_TRIES - 1)
    look = clock.pass_(60)
    script(*waits, look, *[look] * 10, *waits, look, *[look] * 10, clock=clock)
    assert watch(world, "--max_restarts=2") == 1
    assert world.verbs().count("tpu-vm create") == 2
    said = capsys.readouterr()
    assert "did not succeed: not all workers answer" in said.out
    assert "given up after 2 restarts in a row: gone: no answer for 600 s" in said.err


@pytest.mark.slow
@pytest.mark.parametrize(("poll_secs", "looks"), [(600, 1), (30, 20)])
def test_ten_minutes_without_an_answer_lose_a_slice(ready, script, poll_secs, looks):
    clock = Clock()
    calls = []

    def look():
        calls.append("delete" in str(ready.verbs()))

    def back():
        look()
        ready.heal("ssh-1")

    lose = clock.pass_(poll_secs, lambda: ready.fail("ssh-1", "no route"))
    quiet = [clock.pass_(poll_secs, look)] * (looks - 1)
    # The time begins with the first look without an answer, and again after an answer.
    found = clock.pass_(1, lambda: ready.heal("ssh-1"))
    before = [lose, *quiet, found, lose, *quiet]
    # At the last look it is lost; the new one is reached at its second look.
    script(*before, clock.pass_(poll_secs, look), back, ready.finish, clock=clock)
    assert watch(ready) == 0
    assert calls.pop()
    assert not any(calls)
    assert ready.verbs().count("tpu-vm delete") == 1


def states(*kinds: str) -> dict[int, State]:
    made = {}
    for index, kind in enumerate(kinds):
        word, _, code = kind.partition(" ")
        made[index] = State(word, int(code) if code else None)
    return made


@pytest.mark.parametrize(
    ("kinds", "silent_secs", "decision"),
    [
        (("running", "running"), 0, ""),
        (("exited 0", "running"), 0, ""),
        (("none", "none"), 0, "fresh workers"),
        (("running", "none"), 0, "worker 1 not started"),
        (("running", "died"), 0, "worker 1 died"),
        (("exited 1", "running"), 0, "worker 0 failed (exit code 1)"),
        (("exited 143", "exited 143"), 0, "worker 0 stopped (exit code 143)"),
        (("running", "unreachable"), 599, ""),
        (("running", "unreachable"), 600, "gone: no answer for 600 s"),
        # Whether the others must be started again shows when this one answers.
        (("died", "unreachable"), 599, ""),
    ],
)
def test_decisions(kinds, silent_secs, decision):
    assert supervise.decide(states(*kinds), silent_secs) == decision
