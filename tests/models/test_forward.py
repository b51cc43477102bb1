"""Forward passes against Google's: every stage, h, z, logits, running statistics."""

import functools
import pathlib

import jax
import numpy as np
import pytest
import reference_weights
from flax import linen as nn

from simclr_jax.models import SimCLR, create_encoder, create_projection_head

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SETTINGS = {
    "r18_cifar": {"depth": 18, "stem": "cifar"},
    "r50_imagenet": {"depth": 50},
    "r50_sk": {"depth": 50, "sk_ratio": 0.0625},
}
# The same nets in the form that TPUs train.
SETTINGS |= {
    f"{tag}_pointwise": SETTINGS[tag] | {"pointwise_norm": True}
    for tag in ("r50_imagenet", "r50_sk")
}
TITLES = {
    "r18_cifar": "ResNet-18 CIFAR",
    "r50_imagenet": "ResNet-50",
    "r50_sk": "ResNet-50 SK",
}
MODES = {"eval": "evaluation mode", "train": "training mode"}
STAGES = ("stem", "group1", "group2", "group3", "group4")
# Layers whose running statistics were recorded.
NUM_LAYERS = {"r18_cifar": 10, "r50_imagenet": 12, "r50_sk": 16}

# All tolerances of values are shares of the array's largest.
EVALUATION = 1e-5
# Batch statistics of a few values amplify float32's rounding, the more so the deeper.
# The same passes in float64 tell how far the recorded values are off, and that is most
# of what is left between the two: for "r50_sk" 6e-4 (group 4), 2.3e-4 (h), 2e-3 (z) and
# 1.2e-4 (statistics). The tolerances are about three times what they are off.
TRAINING = {
    "r18_cifar": {"stage": 3e-5, "h": 2e-5, "z": 2e-4, "statistics": 1e-5},
    "r50_imagenet": {"stage": 3e-4, "h": 4e-4, "z": 1.5e-3, "statistics": 1.5e-4},
    "r50_sk": {"stage": 1.5e-3, "h": 6e-4, "z": 5e-3, "statistics": 3e-4},
}


def outputs(model, params, stats, images, *, train):
    """What `model.apply` returns, and the output of each stage of its encoder."""
    stages = {}

    def record(run, args, kwargs, context):
        output = run(*args, **kwargs)
        match context.module.path, context.method_name:
            case ("encoder", stage), "__call__":
                stages[stage] = output
        return output

    with nn.intercept_methods(record):
        return *model.apply(params, stats, images, train=train), stages


@pytest.fixture(
    scope="module",
    params=[
        "r18_cifar",
        pytest.param("r50_imagenet", marks=pytest.mark.slow),
        pytest.param("r50_sk", marks=pytest.mark.slow),
        pytest.param("r50_imagenet_pointwise", marks=pytest.mark.slow),
        pytest.param("r50_sk_pointwise", marks=pytest.mark.slow),
    ],
)
def forward(request):
    """Tag, golden arrays, and by mode what `outputs` returns."""
    settings = SETTINGS[request.param]
    tag = request.param.removesuffix("_pointwise")
    with np.load(GOLDEN / f"resnet_forward_{tag}.npz") as arrays:
        golden = dict(arrays)
    encoder = create_encoder(
        **settings, first_group_projection=True, max_pool_padding="same"
    )
    model = SimCLR(encoder, create_projection_head(), num_classes=10)
    images = golden["input"]
    params, stats = map(
        reference_weights.fill, jax.eval_shape(model.init, jax.random.key(0), images)
    )
    run = jax.jit(functools.partial(outputs, model), static_argnames="train")
    got = {mode: run(params, stats, images, train=mode == "train") for mode in MODES}
    return tag, golden, jax.device_get(got)


@pytest.mark.parametrize("mode", MODES)
def test_outputs_match_google(forward, fidelity, mode):
    tag, golden, got = forward
    for output in ("h", "z", "logits"):
        key = {"logits": "logits_sup"}.get(output, output)
        # The logits are a linear map of h.
        tolerance = TRAINING[tag]["z" if output == "z" else "h"]
        fidelity(
            f"{TITLES[tag]}, {MODES[mode]}: {output}",
            getattr(got[mode][0], output),
            golden[f"{mode}/{key}"],
            of_largest=EVALUATION if mode == "eval" else tolerance,
        )


@pytest.mark.parametrize("mode", MODES)
def test_stages_match_google(forward, fidelity, mode):
    tag, golden, got = forward
    stages = got[mode][2]
    assert tuple(sorted(stages)) == tuple(sorted(STAGES))
    for stage, x in stages.items():
        fidelity(
            f"{TITLES[tag]}, {MODES[mode]}: mean and deviation of each stage",
            [np.mean(x, dtype=np.float64), np.std(x, dtype=np.float64)],
            golden[f"{mode}/{stage}_out_stats"],
            rtol=1e-5,
            err_msg=stage,
        )
        fidelity(
            f"{TITLES[tag]}, {MODES[mode]}: corner of each stage",
            x[:2, :3, :3, :8],
            golden[f"{mode}/{stage}_out_corner"],
            of_largest=EVALUATION if mode == "eval" else TRAINING[tag]["stage"],
            err_msg=stage,
        )


def test_running_statistics_match_google(forward, fidelity):
    tag, golden, got = forward
    updated = reference_weights.by_google_name(got["train"][1])
    prefix = "train/after_one_update/"
    names = [
        key.removeprefix(prefix) for key in sorted(golden) if key.startswith(prefix)
    ]
    assert len(names) == 2 * NUM_LAYERS[tag]
    for name in names:
        fidelity(
            f"{TITLES[tag]}, training mode: running statistics after one update",
            updated[name],
            golden[prefix + name],
            of_largest=TRAINING[tag]["statistics"],
            err_msg=name,
        )


def test_hash_has_the_published_values():
    got = reference_weights.hashed("stem/conv1/kernel", (4,))
    want = [0.12086208, 0.52061238, -0.30510260, 0.14659803]
    np.testing.assert_allclose(got, want, atol=1e-8)
    got = reference_weights.hashed("group1/block1/bn1/gamma", (4,))
    want = [-0.52809970, -0.66525672, 0.63633445, 0.01913999]
    np.testing.assert_allclose(got, want, atol=1e-8)
