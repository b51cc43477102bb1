"""Five steps of Google's training from the same weights and images, number by number.

One trajectory has a probe, weights as fresh ones and the learning rate 0.1. The other
has no probe, weights by the formula, so that every layer counts, and the rate 0.01.
"""

import functools
import math
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_weights

from simclr_jax import losses, models, optim
from simclr_jax.training import step

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
WITH_PROBE, WITHOUT = "head_lr0.1_refinit", "nohead_lr0.01_formula"
TITLES = {
    WITH_PROBE: "Five steps of ResNet-18, fresh weights and a probe",
    WITHOUT: "Five steps of ResNet-18, weights by the formula",
}
STEPS = 5

# The recordings hold how much each value moves when rounding errors are added to the
# images; tolerances are 10 times that, and no less than these floors. The noise leaves
# out the inputs of ReLUs that are 0 within rounding: whichever side they fall, their
# share of the gradients is there or not. The fresh network has one at -4e-7 in the
# second layer of its head. With it on the other side, our gradients of the head's
# variables match the recorded ones to 1e-5; without, those in front of it differ by
# 3e-3. In float64 too: there the two trajectories are off by 1e-3 (lengths of
# gradients), 7e-3 (their probes), 4e-4 (final lengths), 3e-3 (lengths of changes) and
# 0.06 (their probes) at most. The floors are about three times as much.
FLOORS = {
    "log": 1e-4,
    "step1_grad_l2": 3e-3,
    "step1_grad_probe": 0.02,
    "final_l2": 1e-3,
    "final_delta_l2": 0.01,
    "final_delta_probe": 0.15,
}
# Of the variables after five steps, at least this share is within the recordings' own
# tolerances: 10 times the noise and no less than 1e-4; 0.05 for probes of changes. Here
# and in float64 95 % are and more.
WITHIN_NOISE = 0.9
WHAT = {
    "step1_grad_l2": "lengths of the first gradients",
    "step1_grad_probe": "probes of the first gradients, of their length",
    "final_l2": "final lengths",
    "final_delta_l2": "lengths of the changes",
    "final_delta_probe": "probes of the changes, of their length",
}
# Google's names of our metrics.
METRICS = {
    "loss": "contrast_loss",
    "contrastive_accuracy": "contrast_acc",
    "contrastive_entropy": "contrast_entropy",
    "probe_loss": "supervised_loss",
    "probe_accuracy": "supervised_acc",
    "learning_rate": "lr",
}


def fresh(name, shape):
    """Weights of `WITH_PROBE`: kernels from hashes, BatchNorms as they start."""
    *parts, leaf = name.split("/")
    if leaf == "kernel" and parts[0] in ("proj_head", "linear_head"):
        return 0.01 * math.sqrt(3) * reference_weights.hashed(name, shape)
    if leaf == "kernel":
        return reference_weights.formula(name, shape)
    ends_a_block = parts[0].startswith("group") and parts[-1] == "bn2"
    one = leaf == "moving_variance" or (leaf == "gamma" and not ends_a_block)
    return np.full(shape, float(one))


def with_gradients(optimizer):
    """The optimiser, with a state that also holds the last gradients."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), optimizer.init(params)

    def update(gradients, state, params):
        updates, inner = optimizer.update(gradients, state[1], params)
        return updates, (gradients, inner)

    return optax.GradientTransformation(init, update)


def make_parts(golden, num_classes):
    temperature, rate, decay = (
        golden[name].item() for name in ("temperature", "learning_rate", "weight_decay")
    )
    encoder = models.create_encoder(depth=18, stem="cifar", first_group_projection=True)
    return step.StepParts(
        model=models.SimCLR(encoder, models.create_projection_head(), num_classes),
        objective=step.Contrastive(
            # Google adds the two directions up.
            loss=lambda z: 2 * losses.nt_xent(z, temperature=temperature),
            temperature=temperature,
            chance=2 * losses.chance_level(len(golden["labels"])),
            probe_weight_decay=decay,
        ),
        optimizer=with_gradients(optim.lars(rate, weight_decay=decay)),
        schedule=lambda step: rate,
    )


def variables(state):
    stats = reference_weights.by_google_name(state.batch_stats)
    return reference_weights.by_google_name(state.params) | stats


def run(tag):
    """Title, golden arrays and what the package's train step makes of them."""
    with np.load(GOLDEN / f"train_trajectory_{tag}.npz") as arrays:
        golden = dict(arrays)
    parts = make_parts(golden, num_classes=10 if tag == WITH_PROBE else None)
    views = np.split(golden["input_two_views"], 2, axis=-1)
    batch = {"images": np.stack(views, 1), "labels": golden["labels"].astype(np.int32)}
    value = fresh if tag == WITH_PROBE else reference_weights.formula
    trees = jax.eval_shape(parts.model.init, jax.random.key(0), views[0])
    params, stats = (reference_weights.fill(tree, value) for tree in trees)
    state = step.TrainState(jnp.int32(0), params, stats, parts.optimizer.init(params))
    start = variables(state)

    apply = jax.jit(functools.partial(parts.model.apply, train=True))
    first, _ = apply(params, stats, np.concatenate(views))
    advance = jax.jit(functools.partial(step.train_step, parts=parts))
    diagnose = jax.jit(parts.objective.diagnostics)
    log, gradients = [], None
    for _ in range(STEPS):
        kernel = np.float64(state.params.get("probe", {}).get("kernel", 0))
        decay = 0.5 * parts.objective.probe_weight_decay * np.sum(kernel**2)
        state, metrics, outputs = advance(state, batch)
        log.append({**metrics, **diagnose(outputs), "weight_decay_loss": decay})
        if gradients is None:
            gradients = reference_weights.by_google_name(state.opt_state[0])
    return types.SimpleNamespace(
        title=TITLES[tag],
        golden=golden,
        z=first.z,
        log={
            METRICS.get(key, key): np.array([np.float64(m[key]) for m in log])
            for key in log[0]
        },
        gradients=gradients,
        start=start,
        end=variables(state),
    )


def length(x):
    return np.linalg.norm(np.float64(x))


def probe(name, x):
    """The inner product with the numbers that a variable's name gives."""
    return np.sum(np.float64(x) * reference_weights.hashed(f"probe:{name}", x.shape))


def compare(fidelity, trajectory, key, names, got, *, unit=None):
    """One recorded number for each variable: relatively, or as a share of a length."""
    golden = trajectory.golden
    noise = golden.get(f"noise_rel/{key}", np.zeros(len(names)))
    tolerances = np.maximum(FLOORS[key], 10 * np.nan_to_num(noise))
    unit = np.ones(len(names)) if unit is None else np.where(unit > 0, unit, 1)
    if key.startswith("final"):
        off = np.abs([got[name] - golden[key][i] for i, name in enumerate(names)])
        scale = unit if key.endswith("probe") else np.abs(golden[key]) + 1e-12
        probes = key.endswith("probe")
        within = off / scale <= (0.05 if probes else np.maximum(1e-4, 10 * noise))
        assert np.mean(within) >= WITHIN_NOISE, f"{WHAT[key]}: {np.mean(within):.0%}"
    for i, (name, tolerance) in enumerate(zip(names, tolerances, strict=True)):
        fidelity(
            f"{trajectory.title}: {WHAT[key]}",
            got[name] / unit[i],
            golden[key][i] / unit[i],
            err_msg=name,
            **{"atol" if key.endswith("probe") else "rtol": tolerance},
        )


def check_first_projections(fidelity, trajectory):
    fidelity(
        f"{trajectory.title}: z of the first step",
        trajectory.z,
        trajectory.golden["step1_z"],
        of_largest=1e-4,
    )


def check_first_gradients(fidelity, trajectory):
    golden, gradients = trajectory.golden, trajectory.gradients
    names = golden["trainable"]
    assert set(names) == set(gradients)
    lengths = {name: length(gradients[name]) for name in names}
    compare(fidelity, trajectory, "step1_grad_l2", names, lengths)
    probes = {name: probe(name, gradients[name]) for name in names}
    unit = golden["step1_grad_l2"]
    compare(fidelity, trajectory, "step1_grad_probe", names, probes, unit=unit)
    # No ReLU lies behind these; the probe's decay makes 4e-5 of its gradient.
    tight = {"proj_head/dense3/kernel": 1e-4, "linear_head/kernel": 5e-6}
    for name in {*names} & {*tight}:
        (i,) = np.flatnonzero(names == name)
        fidelity(
            f"{trajectory.title}: first gradient of {name}",
            np.array([lengths[name], probes[name]]) / unit[i],
            np.array([unit[i], golden["step1_grad_probe"][i]]) / unit[i],
            atol=tight[name],
        )


def check_log(fidelity, trajectory):
    golden, log = trajectory.golden, dict(trajectory.log)
    log["total_loss"] = log["contrast_loss"] + log["weight_decay_loss"]
    log["total_loss"] = log["total_loss"] + log.get("supervised_loss", 0)
    for metric in [key for key in golden if key.startswith("log/")]:
        want = golden[metric]
        if np.isnan(want).all():  # no probe
            continue
        of_probe = metric in ("log/supervised_loss", "log/weight_decay_loss")
        source = "supervised_loss" if of_probe else "contrast_loss"
        noise = np.nan_to_num(golden[f"noise_rel/log/{source}"])
        for i, tolerance in enumerate(np.maximum(FLOORS["log"], 10 * noise)):
            fidelity(
                f"{trajectory.title}: {metric.removeprefix('log/')}",
                log[metric.removeprefix("log/")][i],
                want[i],
                rtol=tolerance,
                # One image's nearest two may be equally near within rounding.
                atol=1 / len(golden["labels"]) if metric == "log/contrast_acc" else 0,
                err_msg=f"step {i + 1}",
            )


def check_variables(fidelity, trajectory):
    golden, start, end = trajectory.golden, trajectory.start, trajectory.end
    names = golden["variables"]
    assert set(names) == set(end) == set(start)
    lengths = {name: length(end[name]) for name in names}
    compare(fidelity, trajectory, "final_l2", names, lengths)
    changes = {name: np.float64(end[name]) - start[name] for name in names}
    lengths = {name: length(change) for name, change in changes.items()}
    compare(fidelity, trajectory, "final_delta_l2", names, lengths)
    probes = {name: probe(name, change) for name, change in changes.items()}
    unit = golden["final_delta_l2"]
    compare(fidelity, trajectory, "final_delta_probe", names, probes, unit=unit)


@pytest.mark.slow
@pytest.mark.parametrize("tag", TITLES)
def test_trajectory_matches_google(fidelity, tag):
    # One test, as running takes longest and workers share nothing.
    trajectory = run(tag)
    check_log(fidelity, trajectory)
    check_first_projections(fidelity, trajectory)
    check_first_gradients(fidelity, trajectory)
    check_variables(fidelity, trajectory)
