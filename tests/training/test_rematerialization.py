"""The least rematerialisation that fits is chosen, agreed on, told and kept."""

import functools
import json

import jax
import jax.numpy as jnp
import jobs
import numpy as np
import pytest
from compiled_memory import GIB, analysis
from etils import epath

from simclr_jax import parallel
from simclr_jax.config import resolve
from simclr_jax.configs import smoke
from simclr_jax.errors import RunFailed
from simclr_jax.parallel import processes
from simclr_jax.training import compiling, out_of_memory, rematerialization
from simclr_jax.training.step import pretraining_parts

# What the step of each level needs, in GiB; None: the compiler refuses it.
NEEDS = {"none": None, "wide_1": 9, "wide_2": 7, "wide": 5, "blocks": 3}


class Program:
    """A step of one level, its trace, its lowering and its executable."""

    def __init__(self, level, needs, compiled, runs=True):
        self.level, self.needs, self.compiled = level, needs, compiled
        self.runs = runs

    def trace(self, *shapes):
        assert shapes[0].shape == (3,)
        return self

    @property
    def jaxpr(self):
        """20 products, and one more for each level."""
        count = 20 + [*NEEDS].index(self.level)
        return jax.make_jaxpr(lambda x: [jnp.dot(x, x) for _ in range(count)])(
            jnp.zeros(3)
        )

    def lower(self, *shapes):
        assert all(x.shape == (3,) for x in shapes)
        return self

    def compile(self):
        self.compiled.append(self.level)
        if self.needs is None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 20G of 16G hbm")
        return self

    def memory_analysis(self):
        return self.needs and analysis(self.needs)

    def __call__(self, x):
        if self.needs is None:
            self.compile()
        if not self.runs:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return self.level


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """choose(limit in GiB) runs a step: (its level, the levels that were compiled)."""

    def run(limit, needs=NEEDS, steps=1, runs=True, **changes):
        compiled = []
        config = smoke.get_config()
        config.update_from_flattened_dict(changes)
        monkeypatch.setattr(
            out_of_memory, "device_limit", lambda: limit and int(limit * GIB)
        )
        monkeypatch.setattr(rematerialization, "with_level", lambda parts, level: level)
        step = rematerialization.fitting(
            lambda level: Program(level, needs[level], compiled, runs),
            config.parallel.remat,
            config,
            epath.Path(tmp_path),
        )
        for _ in range(steps):
            level = step(jnp.zeros(3))
        return level, compiled

    return run


@pytest.mark.parametrize(
    ("limit", "level"),
    [(10.5, "wide_1"), (9.9, "wide_2"), (8, "wide_2"), (7, "wide"), (4, "blocks")],
)
def test_the_first_that_fits_is_compiled_once(choose, limit, level):
    # Nine tenths of the memory can be filled.
    found, compiled = choose(limit, steps=3)
    assert found == level
    assert compiled == [*NEEDS][: [*NEEDS].index(level) + 1]


def test_where_there_is_room_nothing_is_computed_again(choose):
    assert choose(40, NEEDS | {"none": 12}) == ("none", ["none"])


def test_without_a_limit_nothing_is_compiled_in_advance(choose):
    assert choose(None, NEEDS | {"none": 12}) == ("none", [])


def test_a_level_by_name_is_taken_as_it_is(choose):
    assert choose(1, **{"parallel.remat": "wide_2"}) == ("wide_2", [])


def test_where_none_fits_the_error_has_the_figures_of_the_compiler(choose):
    with pytest.raises(RunFailed, match=r"out of memory on .*20G of 16G hbm") as caught:
        choose(2, dict.fromkeys(NEEDS))
    assert "remat" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "level", "needed", "hint"),
    [
        (10.5, "wide_1", "9.0 GiB", "remat=wide_2 needs less than 'wide_1'"),
        (8, "wide_2", "7.0 GiB", "remat=wide needs less than 'wide_2'"),
        (6, "wide", "5.0 GiB", "remat=blocks needs less than 'wide'"),
        (4, "blocks", "3.0 GiB", None),
    ],
)
def test_where_the_choice_fails_its_figures_and_the_next_level_are_said(
    choose, limit, level, needed, hint
):
    with pytest.raises(RunFailed, match=f"needs {needed} of each device") as caught:
        choose(limit, runs=False)
    said = str(caught.value)
    assert (f"--config.parallel.{hint}, which 'auto' chose" in said) == bool(hint)
    assert "remat" in said if hint else "remat" not in said


def test_the_last_level_runs_whatever_room_it_leaves(choose, caplog):
    # 3 of 3.2 GiB are more than nine tenths.
    assert choose(3.2) == ("blocks", [*NEEDS])
    assert "no step fits ('none' does not fit, 'wide_1' needs 9.0 GiB" in caplog.text


def test_a_program_that_tells_no_memory_is_taken(choose, monkeypatch):
    monkeypatch.setattr(Program, "memory_analysis", lambda self: None)
    assert choose(1, NEEDS | {"none": 12}) == ("none", ["none"])
    # And a message goes without its figures.
    with pytest.raises(RunFailed, match=r"out of memory.*remat=wide_1") as caught:
        choose(1, NEEDS | {"none": 12}, runs=False)
    assert "of each device" not in str(caught.value)


def test_other_errors_of_the_compiler_are_not_taken_for_memory(choose, monkeypatch):
    def fail(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(Program, "compile", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        choose(10)


def test_the_choice_and_its_price_are_told(choose, caplog):
    caplog.set_level("INFO")
    choose(8)
    (said,) = [m for m in caplog.messages if "parallel.remat" in m]
    assert "'wide_2', the least that fits" in said
    assert "'none' does not fit, 'wide_1' needs 9.0 GiB" in said
    assert "10.0 % more arithmetic" in said


def test_a_process_with_less_memory_decides_for_all(choose, monkeypatch):
    others = iter(["", "fits", "needs 9.0 GiB", "fits"])
    monkeypatch.setattr(processes, "gather_texts", lambda text: [text, next(others)])
    assert choose(40)[0] == "wide_2"
    # And what does not fit here does not run, whatever the other says.
    monkeypatch.setattr(processes, "gather_texts", lambda text: [text, "fits"])
    monkeypatch.setattr(processes, "is_main", lambda: False)
    assert choose(4, steps=1)[0] == "blocks"


def test_a_restart_begins_with_the_level_of_before(choose, tmp_path):
    assert choose(8)[0] == "wide_2"
    assert choose(40) == ("wide_2", ["wide_2"])
    # With less memory it tries the levels after it.
    assert choose(6) == ("wide", ["wide_2", "wide"])
    assert choose(40) == ("wide", ["wide"])


@pytest.mark.parametrize("key", ["device", "devices", "jax", "config_hash"])
def test_another_program_chooses_anew(choose, tmp_path, key):
    choose(8)
    path = tmp_path / rematerialization.FILE_NAME
    content = json.loads(path.read_text())
    content["program"][key] = "another"
    path.write_text(json.dumps(content))
    assert choose(40)[0] == "wide_1"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parallel.shard_state", True),
        ("parallel.deterministic", True),
        ("loss.form", "streaming"),
        ("optimizer.on_nonfinite", "skip"),
        ("batch.batch_size", 128),
    ],
)
def test_another_setting_of_the_program_chooses_anew(choose, key, value):
    assert choose(8)[0] == "wide_2"
    assert choose(40)[0] == "wide_2"
    assert choose(40, **{key: value})[0] == "wide_1"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"level": "all"}', "\xff"])
def test_a_damaged_record_is_no_record(choose, tmp_path, text):
    choose(8)
    path = tmp_path / rematerialization.FILE_NAME
    if text.startswith('{"level'):
        content = json.loads(path.read_text())
        text = json.dumps(content | json.loads(text))
    path.write_text(text, encoding="latin-1")
    assert choose(40)[0] == "wide_1"


@pytest.mark.slow
def test_a_small_memory_picks_more_and_the_step_stays_the_same(monkeypatch, tmp_path):
    config = smoke.get_config()
    config.encoder.depth, config.encoder.width = 10, 0.0625
    config.batch.batch_size, config.image_size = 16, 16
    config = resolve.resolve(config, num_examples=640)
    mesh = parallel.create_mesh(jax.devices()[:1])
    parts = pretraining_parts(config, num_classes=None, mesh=mesh)
    images = np.random.default_rng(0).integers(0, 256, (16, 2, 16, 16, 3), np.uint8)
    batch = {"images": images, "labels": np.full(16, -1, np.int32)}
    batch = jax.device_put(batch, parallel.batch_sharding(mesh))
    make_step = functools.partial(compiling.compile_step, mesh=mesh)
    monkeypatch.setattr(out_of_memory, "device_limit", lambda: 10 * GIB)
    losses = {}
    # On CPUs, whose programs these are, more rematerialisation saves no memory.
    for needs in ([8 * GIB], [12 * GIB, 11 * GIB, 10 * GIB, 8 * GIB]):
        left = iter(needs)
        monkeypatch.setattr(
            out_of_memory, "needed_bytes", lambda memory, left=left: next(left)
        )
        folder = epath.Path(tmp_path) / str(len(needs))
        folder.mkdir()
        step = rematerialization.fitting(make_step, parts, config, folder)
        state = compiling.compile_init(parts, mesh, image_size=16)(jax.random.key(0))
        for _ in range(3):
            state, metrics, _ = step(state, batch)
        level = json.loads((folder / rematerialization.FILE_NAME).read_text())["level"]
        losses[level] = float(metrics["loss"])
    assert losses.keys() == {"none", "wide"}
    assert losses["none"] == pytest.approx(losses["wide"], rel=1e-5)


@pytest.mark.slow
def test_two_real_processes_take_the_same(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "from simclr_jax import cli\n"
        "cli.define_processes()\n"
        "def main():\n"
        "    cli.start_processes(None)\n"
        "    import jax, jax.numpy as jnp\n"
        "    from etils import epath\n"
        "    from training.test_rematerialization import GIB, NEEDS, Program\n"
        "    from simclr_jax.configs import smoke\n"
        "    from simclr_jax.training import out_of_memory, rematerialization\n"
        "    limit = (40 * GIB, 8 * GIB)[jax.process_index()]\n"
        "    out_of_memory.device_limit = lambda: limit\n"
        "    rematerialization.with_level = lambda parts, level: level\n"
        "    step = rematerialization.fitting(\n"
        "        lambda level: Program(level, NEEDS[level], []),\n"
        f"        None, smoke.get_config(), epath.Path({str(tmp_path)!r}))\n"
        "    print('level', step(jnp.zeros(3)))\n"
        "cli.run(main)\n"
    )
    for _ in range(2):  # chosen, and recorded
        results = jobs.run(
            [str(script), "--compilation_cache="], num_processes=2, devices_each=1
        )
        assert [code for code, _ in results] == [0, 0], results
        assert all("level wide_2\n" in text for _, text in results)
