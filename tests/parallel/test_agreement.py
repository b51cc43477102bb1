"""Requests are due after the same step on all processes, whichever of them asks."""

import random
import re
import threading
import time

import jax
import jobs
import pytest

from simclr_jax.parallel.agreement import Agreement


class Store:
    """The key-value store of the coordination service, for threads of one process."""

    def __init__(self, num_processes: int):
        self._changed = threading.Condition()
        self._values: dict[str, str] = {}
        self._waiting: dict[str, int] = {}
        self._num_processes = num_processes

    def key_value_set(self, key, value):
        with self._changed:
            if key in self._values:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self._changed:
            # Shorter than asked for, so that waiting again is tried.
            if not self._changed.wait_for(lambda: key in self._values, 0.05):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: ...")
            return self._values[key]

    def key_value_dir_get(self, key):
        with self._changed:
            return [item for item in self._values.items() if item[0].startswith(key)]

    def key_value_delete(self, key):
        with self._changed:
            for name in [name for name in self._values if name.startswith(key)]:
                del self._values[name]

    def wait_at_barrier(self, barrier_id, timeout_in_ms):
        with self._changed:
            self._waiting[barrier_id] = self._waiting.get(barrier_id, 0) + 1
            self._changed.notify_all()
            if not self._changed.wait_for(
                lambda: self._waiting[barrier_id] == self._num_processes,
                timeout_in_ms / 1000,
            ):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: barrier")


def start(num_processes, **settings):
    store = Store(num_processes)
    return [Agreement(store, process_id=i, **settings) for i in range(num_processes)]


def run(agreements, steps, ask):
    """What was due at which step, by process; none is two steps ahead of another."""
    done = [0] * len(agreements)
    moved = threading.Condition()
    due = [{} for _ in agreements]

    def process(number):
        chance = random.Random(number)
        for step in range(1, steps + 1):
            with moved:
                moved.wait_for(lambda step=step: min(done) >= step - 2)
            time.sleep(chance.random() * 0.004)
            ask(number, step, agreements[number])
            if found := agreements[number].due():
                due[number][step] = found
            with moved:
                done[number] = step
                moved.notify_all()

    threads = [
        threading.Thread(target=process, args=(i,)) for i in range(len(agreements))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return due


@pytest.mark.parametrize("seed", range(3))
def test_requests_are_due_at_one_step_everywhere(seed):
    at = random.Random(seed).sample(range(1, 60), 5)

    def ask(number, step, agreement):
        if number == step % 3 and step in at:
            agreement.ask(f"request of step {step}")

    due = run(start(3), 200, ask)
    assert due[0] == due[1] == due[2]
    found = {what: step for step, whats in due[0].items() for what in whats}
    assert len(found) == 5
    for what, step in found.items():
        assert step > int(what.rpartition(" ")[2]) - 2


@pytest.mark.slow
def test_two_real_processes_agree_and_end_well(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import time\n"
        "from simclr_jax import cli\n"
        "cli.define_processes()\n"
        "def main():\n"
        "    cli.start_processes(None)\n"
        "    from simclr_jax.parallel import processes\n"
        "    agreement, due = processes.agreement(), []\n"
        "    for number in range(20):\n"
        "        processes.barrier()\n"
        "        if number == 5 and processes.is_main():\n"
        "            agreement.ask('save')\n"
        "        time.sleep(0.02)\n"
        "        due += [number] * len(agreement.due())\n"
        "    print('due', due)\n"
        "cli.run(main)\n"
    )
    command = [str(script), "--compilation_cache="]
    results = jobs.run(command, num_processes=2, devices_each=1)
    assert [code for code, _ in results] == [0, 0], results
    due = [re.search(r"^due (\[\d+\])$", text, re.M)[1] for _, text in results]
    assert due[0] == due[1]


def test_two_that_ask_at_once_are_both_heard():
    def ask(number, step, agreement):
        if step == 5:
            agreement.ask("stop")

    due = run(start(2), 100, ask)
    assert due[0] == due[1]
    assert set.union(*due[0].values()) == {"stop"}


def test_a_process_that_leaves_is_told_to_the_others_once():
    heard = []
    first, second = start(2, on_left=heard.append)
    first.leave("process 0 was ended")
    deadline = time.monotonic() + 20
    while not heard and time.monotonic() < deadline:
        time.sleep(0.01)
    second.leave("process 1 was ended by that")
    time.sleep(0.3)
    assert heard == ["process 0 was ended"]


def test_alone_what_is_asked_is_due_at_the_next_step():
    agreement = Agreement()
    assert agreement.due() == set()
    agreement.ask("save")
    agreement.ask("stop")
    assert agreement.due() == {"save", "stop"}
    assert agreement.due() == set()


def test_processes_meet_or_do_not():
    first, second = start(2)
    other = threading.Thread(
        target=second.meet, args=("a",), kwargs={"timeout_secs": 9}
    )
    other.start()
    assert first.meet("a", timeout_secs=9)
    other.join()
    assert not first.meet("b", timeout_secs=0.1)
