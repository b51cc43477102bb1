"""Damaged and hostile input, and what must hold whatever it is.

A target is a function of some input. It may return or raise one of the package's
errors, and nothing else, within a few seconds. Hypothesis makes the inputs and shrinks
what fails.
"""

import contextlib
import copy
import faulthandler
import itertools
import json
import math
import resource
import signal
import time

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from simclr_jax.errors import InvalidInput, RunFailed

LIMIT_SECS = 10  # of one example
MAX_GROWTH_BYTES = 4 << 30  # of the process, by all examples of a target
# Numbers that lengths, offsets, sizes and counts are replaced by.
_EDITS = ("flip", "cut", "drop", "insert", "splice", "number")
_EXTREMES = (0, 1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63)


class TooSlow(BaseException):
    """An example that took longer than `LIMIT_SECS`; nothing catches it."""


@contextlib.contextmanager
def _limited():
    def stop(*_):
        raise TooSlow(f"took more than {LIMIT_SECS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECS)
    # For code that never returns to Python.
    faulthandler.dump_traceback_later(10 * LIMIT_SECS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(target, strategy, *, secs):
    """Runs a target on examples for some time; returns how many there were.

    Args:
      target: takes an example.
      strategy: of Hypothesis.
      secs: how long from the first example on; a failing example ends it earlier.
    """
    stop = math.inf  # Hypothesis may need seconds before it has an example
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num_examples = 0

    def check(example):
        nonlocal num_examples, stop
        stop = min(stop, time.monotonic() + secs)
        if time.monotonic() > stop:
            return  # Hypothesis ends a round by its number of examples alone
        num_examples += 1
        with _limited(), contextlib.suppress(InvalidInput, RunFailed):
            target(example)

    settings = hypothesis.settings(
        max_examples=500,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
        report_multiple_bugs=False,
    )
    for number in itertools.count():
        if time.monotonic() > stop:
            break
        hypothesis.seed(number)(settings(hypothesis.given(strategy)(check)))()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MAX_GROWTH_BYTES
    return num_examples


@st.composite
def damaged(draw, samples):
    """One of some files with a few edits: flips, cuts, splices, extreme numbers."""
    content = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 4))):
        size = len(content)
        # Beginnings and ends hold headers and indices.
        place = draw(
            st.integers(0, min(size, 128)) | st.integers(max(size - 128, 0), size)
            if draw(st.booleans())
            else st.integers(0, size)
        )
        kind = draw(st.sampled_from(_EDITS))
        length = draw(st.integers(1, 64))
        if kind == "flip" and place < size:
            content[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del content[place:]
        elif kind == "drop":
            del content[place : place + length]
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=64))
        elif kind == "splice":
            other = draw(st.sampled_from(samples))
            start = draw(st.integers(0, len(other)))
            content[place:place] = other[start : start + 8 * length]
        elif kind == "number":
            width = draw(st.sampled_from((1, 2, 4, 8)))
            value = draw(st.sampled_from(_EXTREMES)) % (1 << 8 * width)
            order = draw(st.sampled_from(("little", "big")))
            content[place : place + width] = value.to_bytes(width, order)
    return bytes(content)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from((10**30, -1, "../x", "\0", "\x1b[2J", "a\nb", 1e308)),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=8,
)


@st.composite
def changed_json(draw, sample):
    """The text of a JSON object with some values replaced, deleted or added."""
    value = copy.deepcopy(sample)
    for _ in range(draw(st.integers(1, 3))):
        parent = value
        while isinstance(parent, dict | list) and parent:
            keys = list(parent) if isinstance(parent, dict) else range(len(parent))
            key = draw(st.sampled_from(list(keys)))
            inner = parent[key]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                parent = inner
                continue
            if draw(st.integers(0, 4)):
                parent[key] = draw(JSON_VALUES)
            elif isinstance(parent, dict):
                del parent[key]
            break
    return json.dumps(value).encode(errors="surrogatepass")
