"""Signals reach a program at once, while its main thread is inside a library."""

import signal
import subprocess
import sys
import time

import pytest
from commands import ROOT

# A call that lasts hours, in C and without the interpreter's lock.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
PROGRAM = """
import hashlib, os, signal, time
from simclr_jax import signals
# Shells start programs in the background deaf to SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
def say(text): print(text, flush=True)
with signals.listening(), signals.before_ending(lambda reason: say(reason)):
    {body}
"""


def start(body: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_a_program_inside_a_library_with_one_line(number, code, words):
    process = start(f"say('ready'); {BUSY}")
    assert process.stdout.readline() == "ready\n"
    sent = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert process.returncode == code
    assert err == f"error: {words}\n"
    assert out == f"{words}\n"  # the last words


def test_the_first_signal_is_handed_over_and_a_second_one_ends():
    process = start(
        "context = signals.on_first(lambda heard: say(f'first {heard.name}'))\n"
        f"    with context: say('ready'); {BUSY}"
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "first SIGINT\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err == "error: ended by SIGTERM, the second signal, without waiting\n"


def test_last_words_that_hang_do_not_keep_it():
    hang = f"signals._ENDING_SECS = 0.3; signals.call_before_ending(lambda _: {BUSY})"
    process = start(f"{hang}; say('ready'); {BUSY}")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_pipe_that_nobody_reads_does_not_keep_it():
    full = "context = signals.on_first(lambda _: os.write(2, b'x' * 10**6))"
    body = f"signals._ENDING_SECS = 0.3; {full}\n    with context: say('ready'); {BUSY}"
    process = start(body)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    process.communicate()


def test_afterwards_signals_act_as_before():
    body = "pass\ntry: say('ready'); time.sleep(60)\n"
    process = start(body + "except KeyboardInterrupt: say('raised')")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "raised\n"
