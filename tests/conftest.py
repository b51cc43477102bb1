"""Eight virtual CPU devices, one compilation cache, and the fidelity page."""

import gc
import os
import pathlib
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
# Programs and their traces are objects that stay, more with each test: looking through
# them for garbage took 6 % of the time of tests/losses, tests/models and tests/optim.
gc.set_threshold(50_000, 20, 50)
# Inherited by the processes that tests start, and shared by all of them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(tempfile.gettempdir()) / f"simclr_jax_test_cache_{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Compiling takes most of the time here. Less optimised programs compile twice as fast,
# and again so without the emitters that build an MLIR context for each fusion (an
# option that JAX 0.12 no longer has: it ignores it).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)

import bad_input_page  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from fidelity import Fidelity  # noqa: E402
from fidelity import page as fidelity_page  # noqa: E402
from stores import gcs, gcs_running, s3, s3_running  # noqa: E402, F401

from simclr_jax.parallel import processes  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
processes.serve_virtual_devices()


def pytest_addoption(parser):
    parser.addoption("--fidelity-page", help="Write the comparisons made to this file.")
    parser.addoption("--bad-inputs-page", help="Write the bad inputs to this file.")
    parser.addoption(
        "--fuzz-secs", type=float, default=5, help="Time for each target in tests/fuzz."
    )


@pytest.hookimpl(tryfirst=True)  # before `-m` looks for markers
def pytest_collection_modifyitems(items):
    for item in items:
        if "fidelity" in getattr(item, "fixturenames", ()):
            item.add_marker("fidelity")


@pytest.fixture
def fidelity(request):
    return Fidelity(request.node.user_properties)


_rows: dict[str, list] = {"fidelity": [], "bad input": []}


def pytest_runtest_logreport(report):
    # Properties travel with the reports from the workers to the process that prints.
    if report.when == "call" and report.passed:
        for name, row in report.user_properties:
            _rows.get(name, []).append(row)


def pytest_sessionfinish(session, exitstatus):
    if exitstatus != 0 or hasattr(session.config, "workerinput"):
        return
    pages = {
        "--fidelity-page": lambda: fidelity_page(_rows["fidelity"]),
        "--bad-inputs-page": lambda: bad_input_page.page(_rows["bad input"]),
    }
    for option, page in pages.items():
        if path := session.config.getoption(option):
            pathlib.Path(path).write_text(page())
