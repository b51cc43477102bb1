"""Traces of some steps, where XProf and TensorBoard look for them."""

import logging
import re

import pytest
from pretraining import pretrain

from simclr_jax.configs import smoke
from simclr_jax.errors import ConfigError
from simclr_jax.training import profiling


def tiny():
    config = smoke.get_config()
    config.image_size, config.encoder.width = 8, 0.0625
    config.encoder.depth = 10
    config.batch.batch_size = 16
    config.schedule.warmup_steps, config.schedule.train_steps = 0, 4
    return config


@pytest.mark.slow
def test_a_trace_has_the_steps_that_were_asked_for(tmp_path):
    pretrain(tiny(), str(tmp_path / "run"), profile_steps="2:3")
    (trace,) = (tmp_path / "run/plugins/profile/steps_2_to_3").iterdir()
    assert re.fullmatch(r"\S+_process_0\.xplane\.pb", trace.name)
    # XProf finds steps by the annotation `train` and its statistic `step_num`.
    assert _steps(trace.read_bytes()) == {2, 3}


def _steps(content: bytes) -> set[int]:
    """The `step_num` of all annotations `train` in a trace."""
    # Not JAX's own reader, in which JAX 0.12.0 on Python 3.13 crashes.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(content)
    return {
        stat.int64_value or stat.uint64_value
        for plane in space.planes
        for line in plane.lines
        for event in line.events
        if plane.event_metadata[event.metadata_id].name == "train"
        for stat in event.stats
        if plane.stat_metadata[stat.metadata_id].name == "step_num"
    }


@pytest.mark.parametrize("text", ["10", "a:b", "0:2", "3:2", "2:5", "2:3:4", ""])
def test_a_range_that_the_run_does_not_have_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=f"--profile_steps={text}: must be"):
        pretrain(tiny(), str(tmp_path / "run"), profile_steps=text)
    assert not (tmp_path / "run").exists()


def test_steps_that_are_made_already_are_not_traced(tmp_path, caplog):
    profiler = profiling.Profiler(str(tmp_path), profiling.StepRange(3, 4), 3)
    assert "no trace, since 3 steps are made already" in caplog.text
    assert profiler.run(4, lambda x: x + 1, 1) == 2
    profiler.close()
    assert not any(tmp_path.iterdir())


def test_a_run_that_ends_early_leaves_what_was_traced(tmp_path, caplog):
    caplog.set_level(logging.INFO, "simclr_jax")
    profiler = profiling.Profiler(str(tmp_path), profiling.StepRange(1, 9), 0)
    profiler.run(1, lambda: 1)
    profiler.close()
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
    assert f"A trace of steps 1 to 9 is in {tmp_path}" in caplog.text
