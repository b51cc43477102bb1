"""Steps that are not finite: what is said about them, and going on without them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first

from simclr_jax import models, optim
from simclr_jax.configs import smoke
from simclr_jax.errors import TrainingDiverged
from simclr_jax.runs import metrics_writer
from simclr_jax.training import divergence, reporter, step

PARAMS = {
    "encoder": {
        "stem": {"conv1": {"kernel": np.float32([3.0, 4.0])}},
        "group1": {"conv2": {"kernel": np.float32([5.0, 12.0])}},
        "group10": {"conv2": {"kernel": np.float32([8.0, 15.0])}},
        "group2": {"conv1": {"kernel": np.float32([1.0, 0.0])}},
    }
}
STATISTICS = {
    "encoder": {
        "group1": {"bn2": {"mean": np.float32([0.0]), "var": np.float32([2.0])}},
        "stem": {"bn1": {"mean": np.float32([1.0]), "var": np.float32([1.0])}},
    }
}


def make_state(optimizer=None, params=PARAMS):
    optimizer = optimizer or optax.identity()
    params = jax.tree.map(jnp.asarray, params)
    statistics = jax.tree.map(jnp.asarray, STATISTICS)
    opt_state = optimizer.init(params)
    return step.TrainState(jnp.int32(0), params, statistics, opt_state)


def make_config(**settings):
    config = smoke.get_config()
    config.update_from_flattened_dict(settings)
    return config


def make_metrics(gradients=PARAMS, statistics=STATISTICS, updates=PARAMS, **losses):
    metrics = divergence.norms(gradients, updates, statistics)
    return {"loss": 1.5, "probe_loss": 2.5, **jax.device_get(metrics), **losses}


def replaced(tree, values):
    """A copy of a tree with other values of the leaves named by a part of the path."""

    def leaf(path, value):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = [new for part, new in values.items() if part in name]
        return np.full_like(value, found[0]) if found else value

    return jax.tree_util.tree_map_with_path(leaf, tree)


def message(metrics, **settings):
    guard = divergence.Guard(make_config(**settings), make_state())
    with pytest.raises(TrainingDiverged) as caught:
        guard.check(7, metrics)
    return str(caught.value)


def test_the_norms_are_those_of_optax_to_the_bit():
    generator = np.random.default_rng(0)
    shapes = [(3, 4), (5,), (7, 2, 2), (1,)]
    tree = {f"{n}": generator.normal(size=s) for n, s in enumerate(shapes)}
    tree = jax.tree.map(jnp.float32, tree)
    found = jax.jit(divergence.norms)(tree, jax.tree.map(jnp.negative, tree), tree)
    expected = jax.jit(optax.tree.norm)(tree)
    assert found["gradient_norm"] == found["update_norm"] == expected
    squares = [np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(tree)]
    np.testing.assert_allclose(found[divergence.SUMS], squares * 3, rtol=1e-6)


def test_finite_metrics_come_back_without_the_sums():
    guard = divergence.Guard(make_config(), make_state())
    values = guard.check(1, make_metrics())
    assert values == {
        "loss": 1.5,
        "probe_loss": 2.5,
        "gradient_norm": pytest.approx(np.sqrt(25 + 169 + 289 + 1)),
        "update_norm": pytest.approx(np.sqrt(25 + 169 + 289 + 1)),
    }


def test_the_part_of_the_loss_and_the_first_layers_are_named():
    statistics = replaced(STATISTICS, {"group1": np.nan})
    gradients = replaced(PARAMS, {"group": np.inf, "stem": np.nan})
    text = message(
        make_metrics(gradients, statistics, loss=np.nan), **{"log.every_steps": 3}
    )
    assert text.startswith("step 7: loss is nan, gradient_norm is nan")
    assert "(finite: probe_loss 2.5)" in text
    assert (
        "BatchNorm statistics not finite: encoder/group1/bn2/mean (nan), "
        "encoder/group1/bn2/var (nan); all gradients are not finite" in text
    )
    assert "config.optimizer.learning_rate" in text


def test_layers_are_named_in_forward_order():
    gradients = replaced(PARAMS, {"group": np.inf})
    text = message(make_metrics(gradients))
    assert (
        "gradients not finite: encoder/group1/conv2/kernel (inf), "
        "encoder/group2/conv1/kernel (inf), encoder/group10/conv2/kernel (inf). "
        in text
    )
    assert "loss is" not in text


@pytest.mark.parametrize("part", ["statistics", "updates", "probe_loss"])
def test_every_kind_of_value_is_looked_at(part):
    metrics = {
        "statistics": make_metrics(statistics=replaced(STATISTICS, {"stem": np.inf})),
        "updates": make_metrics(updates=replaced(PARAMS, {"stem": np.inf})),
        "probe_loss": make_metrics(probe_loss=np.inf),
    }[part]
    expected = {
        "statistics": "step 7: BatchNorm statistics not finite: encoder/stem/bn1/mean",
        "updates": "update_norm is inf.*updates not finite: encoder/stem",
        "probe_loss": "step 7: probe_loss is inf \\(finite: loss 1.5\\)",
    }[part]
    assert re.search(expected, message(metrics))


def test_where_only_the_sum_overflows_the_largest_layers_are_named():
    gradients = replaced(PARAMS, {"group1/": 1.2e19, "stem": 0.9e19, "group2": 1e10})
    text = message(make_metrics(gradients))
    assert "gradient_norm is inf" in text
    assert (
        "largest gradients: encoder/group1/conv2/kernel (1.7e+19), "
        "encoder/stem/conv1/kernel (1.27e+19), encoder/group2" in text
    )


@pytest.mark.parametrize("sk_ratio", first(1, [0.0, 0.0625]))
def test_forward_order_is_that_in_which_flax_creates_layers(sk_ratio):
    model = models.SimCLR(
        models.create_encoder(depth=50, width=0.25, sk_ratio=sk_ratio, se_ratio=0.25),
        models.create_projection_head(num_layers=3),
        num_classes=3,
    )
    created = {}

    def init(key):
        # Flax's dicts are in the order of creation; those of JAX are sorted.
        variables = model._network().init(key, jnp.zeros((1, 32, 32, 3)), train=False)

        def walk(tree, path):
            if isinstance(tree, dict):
                for name, inner in tree.items():
                    walk(inner, [*path, name])
            else:
                created.setdefault("/".join(path[:-1]))

        walk(variables["params"], [])
        return variables

    jax.eval_shape(init, jax.random.key(0))
    assert len(created) > 100
    found = sorted(sorted(created), key=divergence._position)
    assert found == [*created]


OPTIMIZERS = {
    "lars": lambda rate: optim.lars(rate, weight_decay=1e-4),
    "sgd": lambda rate: optim.sgd(rate, weight_decay=1e-4),
    "adamw": lambda rate: optim.adamw(rate, weight_decay=1e-4),
    "frozen": lambda rate: optim.freeze(
        optim.sgd(rate, weight_decay=0.0), lambda path: "stem" in str(path)
    ),
}


def rate(step):
    return 0.1 / (1 + step)


def advanced(optimizer, state, gradients, **metrics):
    """The state after a step that may be skipped, and its metrics."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    statistics = jax.tree.map(lambda x: x + 1, state.batch_stats)
    new = step.TrainState(state.step + 1, params, statistics, opt_state)
    values = {"loss": jnp.float32(1.0), **metrics}
    values |= divergence.norms(gradients, updates, statistics)
    return *divergence.skip_nonfinite(state, new, values), new


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_changes_nothing_but_step_and_schedule(name):
    optimizer = OPTIMIZERS[name](rate)
    good = jax.tree.map(jnp.asarray, PARAMS)
    state, _, _ = advanced(optimizer, make_state(optimizer), good)
    bad = replaced(PARAMS, {"group1/": np.nan})
    after, metrics, _ = advanced(optimizer, state, bad)
    assert float(metrics["skipped"]) == 1
    assert int(after.step) == 2
    for part in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(after, part), getattr(state, part)
        )
    counts = [
        int(node.count)
        for node in jax.tree.leaves(
            after.opt_state,
            is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState),
        )
        if isinstance(node, optax.ScaleByScheduleState)
    ]
    assert counts == [2]
    back = optim.at_step(after.opt_state, 1)
    jax.tree.map(np.testing.assert_array_equal, back, state.opt_state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_finite_step_is_made_as_without_the_check(name):
    optimizer = OPTIMIZERS[name](rate)
    good = jax.tree.map(jnp.asarray, PARAMS)
    after, metrics, new = advanced(optimizer, make_state(optimizer), good)
    assert float(metrics["skipped"]) == 0
    jax.tree.map(np.testing.assert_array_equal, after, new)


@pytest.mark.parametrize("name", ["loss", "probe_loss", "gradient_norm", "update_norm"])
def test_a_step_is_skipped_for_each_of_its_values(name):
    optimizer = optax.sgd(0.1)
    state = make_state(optimizer)
    new = step.TrainState(state.step + 1, state.params, state.batch_stats, ())
    new = step.TrainState(new.step, new.params, new.batch_stats, state.opt_state)
    metrics = {k: jnp.asarray(v) for k, v in make_metrics().items()}
    metrics[name] = jnp.float32(np.inf)
    _, found = divergence.skip_nonfinite(state, new, metrics)
    assert found["skipped"] == 1
    metrics[name] = jnp.float32(1.0)
    _, found = divergence.skip_nonfinite(state, new, metrics)
    assert found["skipped"] == 0
    # Of the statistics, which come last.
    metrics[divergence.SUMS] = metrics[divergence.SUMS].at[-1].set(np.nan)
    _, found = divergence.skip_nonfinite(state, new, metrics)
    assert found["skipped"] == 1


def test_skipped_steps_are_counted_and_limited_in_a_row(caplog):
    config = make_config(**{"optimizer.max_skipped_steps": 2})
    guard = divergence.Guard(config, make_state(), skipped_steps=5)
    bad = make_metrics(loss=np.nan, skipped=np.float32(1))
    good = make_metrics(skipped=np.float32(0))
    with caplog.at_level("WARNING", logger="simclr_jax"):
        assert guard.check(1, bad) is None
        assert guard.check(2, bad) is None
    assert "step 2: loss is nan" in caplog.text
    assert "skipped steps: 7" in caplog.text
    assert guard.check(3, good)["skipped_steps"] == 7
    assert guard.check(4, bad) is None
    assert guard.check(5, bad) is None
    with pytest.raises(TrainingDiverged) as caught:
        guard.check(6, bad)
    assert "step 6: loss is nan" in str(caught.value)
    assert "config.optimizer.max_skipped_steps=2" in str(caught.value)


def test_the_count_goes_on_after_a_resume(tmp_path):
    writer = metrics_writer.MetricsWriter(str(tmp_path), resume_step=0)
    assert writer.skipped_steps == 0
    for number, skipped in ((1, 0), (2, 3), (3, 4)):
        writer.write(number, {"loss": 1.0, "skipped_steps": skipped})
    writer.close()
    resumed = metrics_writer.MetricsWriter(str(tmp_path), resume_step=2)
    assert resumed.skipped_steps == 3
    resumed.close()


def test_a_skipped_step_has_no_line_in_the_log(tmp_path):
    config = make_config(**{"schedule.train_steps": 3, "log.every_steps": 1})
    writer = metrics_writer.MetricsWriter(str(tmp_path), resume_step=0)
    found = reporter.Reporter(
        config,
        writer,
        start_step=0,
        chance=None,
        health=None,
        guard=divergence.Guard(config, make_state()),
    )
    rest = {"learning_rate": 0.1}
    found.report(1, jax.tree.map(jnp.asarray, make_metrics(skipped=0.0, **rest)))
    found.report(
        2, jax.tree.map(jnp.asarray, make_metrics(skipped=1.0, loss=np.nan, **rest))
    )
    found.report(3, jax.tree.map(jnp.asarray, make_metrics(skipped=0.0, **rest)))
    writer.close()
    records = metrics_writer.read_metrics(tmp_path / metrics_writer.FILE_NAME)
    assert [(r["step"], r["skipped_steps"]) for r in records] == [(1, 0), (3, 1)]


@pytest.mark.slow
def test_nothing_is_selected_where_a_step_that_is_not_finite_stops_the_run():
    """The programs differ, and without `skip_nonfinite` nothing is compared."""
    parts = step.StepParts(
        model=models.SimCLR(
            models.create_encoder(depth=10, width=0.0625, stem="cifar"),
            models.create_projection_head(kind="none"),
        ),
        objective=step.Contrastive(
            loss=lambda z: jnp.sum(jnp.square(z)), temperature=1.0
        ),
        optimizer=optax.sgd(0.1),
        schedule=lambda step: 0.1,
    )
    state = jax.eval_shape(
        lambda key: step.init_state(parts, key, image_size=8), jax.random.key(0)
    )
    batch = {
        "images": jax.ShapeDtypeStruct((2, 2, 8, 8, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((2,), jnp.int32),
    }

    def program(skip):
        chosen = dataclasses.replace(parts, skip_nonfinite=skip)
        made = jax.make_jaxpr(lambda s, b: step.train_step(s, b, parts=chosen))
        return str(made(state, batch))

    assert "is_finite" not in program(False)
    assert "is_finite" in program(True)
