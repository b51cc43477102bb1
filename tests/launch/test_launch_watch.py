"""`watch`: what it starts again, and what it leaves alone."""

import os
import signal

import pytest
import supervise
import tpu
from job import State

KIND = ("--accelerator_type=v5litepod-16", "--version=v2-alpha")


def watch(world, *options: str) -> int:
    settings = ("--verify_secs=0.05", "--poll_secs=7", *options)
    program = [f"--workdir={world.root}/shared/a"]
    return tpu.main(["watch", "--name=n", "--zone=z", *KIND, *settings, "--", *program])


def starts(world) -> list[int]:
    return [world.starts(index) for index in range(2)]


def nothing() -> None:
    """Time passes."""


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


@pytest.mark.parametrize("state", ["missing", "TERMINATED"])
def test_a_lost_slice_is_made_again(ready, script, state):
    def lose():
        if state == "missing":
            (ready.root / "slices/n").unlink()
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
    assert watch(ready, "--max_restarts=2", "--verify_secs=0.5") == 1
    assert starts(ready) == [2, 2]
    said = capsys.readouterr().err
    assert "given up after 2 restarts in a row: worker 0 failed (exit code 1)" in said


def test_half_an_hour_of_running_ends_a_row(ready, script):
    now = [0.0]

    def run_then_crash():
        now[0] += 1900
        ready.finish(1)

    script(run_then_crash, run_then_crash, ready.finish, clock=lambda: now[0])
    assert watch(ready, "--max_restarts=1") == 0
    assert starts(ready) == [3, 3]


def test_waits_for_capacity_without_counting(world, script, capsys):
    world.fail("tpu-vm-create", 'There is no more capacity in the zone "z"')
    script(nothing, nothing, nothing, lambda: world.heal("tpu-vm-create"), world.finish)
    assert watch(world, "--capacity=spot", "--max_restarts=1") == 0
    assert "no capacity yet" in capsys.readouterr().out
    assert starts(world) == [1, 1]


def test_a_refused_create_counts(world, script, capsys):
    world.fail("tpu-vm-create", "no such accelerator")
    script(nothing, nothing)
    assert watch(world, "--max_restarts=2") == 1
    assert "given up after 2 restarts" in capsys.readouterr().err


def test_waits_in_the_queue(world, script, capsys):
    def granted():
        world.queued("ACTIVE")
        world.slice("READY")

    script(nothing, nothing, granted, world.finish)
    assert watch(world, "--capacity=queued-spot") == 0
    assert world.verbs()[0] == "queued-resources create"
    assert world.verbs().count("queued-resources create") == 1
    assert "queued: WAITING_FOR_RESOURCES" in capsys.readouterr().out


def test_a_suspended_request_is_made_again(world, script):
    world.queued("SUSPENDED")
    script(lambda: world.slice("READY"), world.finish)
    assert watch(world, "--capacity=queued") == 0
    changes = [verb for verb in world.verbs() if "queued" in verb]
    assert changes == ["queued-resources delete", "queued-resources create"]


def test_new_workers_may_take_a_while_to_answer(world, script, capsys):
    world.slice("READY")
    world.fail("ssh-1", "connection refused", once=True)
    script(nothing, nothing, world.finish)
    assert watch(world) == 0
    assert starts(world) == [1, 1]


def states(*kinds: str) -> dict[int, State]:
    made = {}
    for index, kind in enumerate(kinds):
        word, _, code = kind.partition(" ")
        made[index] = State(word, int(code) if code else None)
    return made


@pytest.mark.parametrize(
    ("kinds", "unreached", "decision"),
    [
        (("running", "running"), 0, ""),
        (("exited 0", "running"), 0, ""),
        (("none", "none"), 0, "fresh workers"),
        (("running", "none"), 0, "worker 1 not started"),
        (("running", "died"), 0, "worker 1 died"),
        (("exited 1", "running"), 0, "worker 0 failed (exit code 1)"),
        (("running", "unreachable"), 2, ""),
        (("running", "unreachable"), 3, "gone: no answer 3 times"),
        # Whether the others must be started again shows when this one answers.
        (("died", "unreachable"), 1, ""),
    ],
)
def test_decisions(kinds, unreached, decision):
    assert supervise.decide(states(*kinds), unreached) == decision
