"""Every contrastive objective against its paper's equations, one pair at a time."""

import functools
import inspect
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fidelity import EQUATIONS

from simclr_jax.losses import LOSSES, similarities
from simclr_jax.parallel import batch_sharding, create_mesh

OBJECTIVES = [
    pytest.param(name, options, id="-".join([name, *options]))
    for name, options in [
        ("nt_xent", {}),
        ("nt_logistic", {}),
        ("nt_logistic", {"semi_hard": True}),
        ("margin_triplet", {}),
        ("margin_triplet", {"semi_hard": True}),
        ("dcl", {}),
        ("dclw", {}),
        ("dclw", {"weight_temperature": 0.2}),
        ("sup_con", {}),
    ]
]
SHAPES = [
    pytest.param(2, 2, marks=pytest.mark.slow),
    (4, 2),
    pytest.param(16, 2, marks=pytest.mark.slow),
    (4, 3),
]
each_objective = pytest.mark.parametrize(("name", "options"), OBJECTIVES)


def by_default(*ids):
    """All objectives, of which these run by default."""
    cases = [
        pytest.param(
            *objective.values,
            id=objective.id,
            marks=[] if objective.id in ids else pytest.mark.slow,
        )
        for objective in OBJECTIVES
    ]
    return pytest.mark.parametrize(("name", "options"), cases)


# One that sums over all pairs, one that mines and one with labels.
few_objectives = by_default("nt_xent", "margin_triplet-semi_hard", "sup_con")
# And one whose denominator leaves the positive pair out.
some_objectives = by_default("nt_xent", "dcl", "margin_triplet-semi_hard", "sup_con")


def settings_of(name, options):
    """All tested settings of a loss; the others have their defaults."""
    scales = {"temperature": (0.05, 0.1, 0.5, 1.0)}
    if name == "margin_triplet":
        scales = {"margin": (0.1, 0.4, 1.0)}
    [(scale, values)] = scales.items()
    for value, plain in itertools.product(values, ({}, {"normalize": False})):
        yield {scale: value, **options, **plain}


def first_setting(name, options):
    return next(settings_of(name, options))


def projections(num_images, num_views=2, width=5, *, seed=5):
    """Lengths around 1.8; views agree so little that every batch has failures.

    In a solved one nothing is left of the gradient but the rounding of 1 - p.
    """
    noise = np.random.default_rng(seed).normal(size=(num_images, num_views, width))
    return (0.3 * noise[:, :1] + 0.7 * noise).astype(np.float32)


def inputs(name, z):
    """`z` and, if it has such a parameter, labels: twice 1, two without, 0, 2, 0."""
    if not LOSSES[name].needs_labels:
        return (z,)
    return z, np.resize([1, 1, -1, -1, 0, 2, 0], len(z))


def value_and_gradient(name, z, *labels, jit=False, **settings):
    # Not compiled as a whole unless asked: that would take 0.3 s for every setting.
    function = jax.value_and_grad(functools.partial(LOSSES[name].function, **settings))
    return jax.block_until_ready((jax.jit(function) if jit else function)(z, *labels))


# The oracle: float64, loops over pairs and triples. View v of image b has the number
# b * V + v; s[i][j] is the similarity of i and j.


def embed(z, normalize=True):
    u = np.asarray(z, np.float64).reshape(-1, z.shape[-1])
    lengths = np.linalg.norm(u, axis=1, keepdims=True)
    return u / np.maximum(lengths, 1e-30) if normalize else u


def roles(z):
    """Every anchor with its positives and its negatives."""
    image = [b for b, views in enumerate(z) for _ in views]
    for i in range(len(image)):
        others = [j for j in range(len(image)) if j != i]
        positives = [j for j in others if image[j] == image[i]]
        yield i, positives, [k for k in others if image[k] != image[i]]


def triples(s, z, semi_hard):
    """(anchor, positive, negative); with semi_hard one negative for each positive."""
    for i, positives, negatives in roles(z):
        for j in positives:
            chosen = negatives
            if semi_hard:
                chosen = sorted(negatives, key=lambda k: s[i][k])
                farther = [k for k in chosen if s[i][k] < s[i][j]]
                chosen = farther[-1:] or chosen[:1]
            yield from ((i, j, k) for k in chosen)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax_terms(s, i, candidates, temperature):
    return {k: math.exp(s[i][k] / temperature) for k in candidates}


def nt_xent(s, z, *, temperature):
    """SimCLR, Eq. 1."""
    losses = []
    for i, positives, negatives in roles(z):
        terms = softmax_terms(s, i, positives + negatives, temperature)
        losses += [-math.log(terms[j] / sum(terms.values())) for j in positives]
    return np.mean(losses)


def nt_logistic(s, z, *, temperature, semi_hard=False):
    """SimCLR, Table 2, negated."""
    return np.mean(
        [
            -math.log(sigmoid(s[i][j] / temperature))
            - math.log(sigmoid(-s[i][k] / temperature))
            for i, j, k in triples(s, z, semi_hard)
        ]
    )


def margin_triplet(s, z, *, margin, semi_hard=False):
    """SimCLR, Table 2, negated."""
    return np.mean(
        [max(s[i][k] - s[i][j] + margin, 0) for i, j, k in triples(s, z, semi_hard)]
    )


def dcl(s, z, *, temperature, weight=lambda similarity: 1):
    """Yeh et al. 2022, Eq. 6."""
    losses = []
    for i, positives, negatives in roles(z):
        terms = softmax_terms(s, i, negatives, temperature)
        for j in positives:
            attraction = weight(s[i][j]) * s[i][j] / temperature
            losses.append(-attraction + math.log(sum(terms.values())))
    return np.mean(losses)


def dclw(s, z, *, temperature, weight_temperature=0.5):
    """Yeh et al. 2022, Eq. 7, with the sigma of its authors' code."""
    pairs = [s[i][j] for i, positives, _ in roles(z) for j in positives]
    mean = np.mean([math.exp(x / weight_temperature) for x in pairs])
    return dcl(
        s,
        z,
        temperature=temperature,
        weight=lambda x: 2 - math.exp(x / weight_temperature) / mean,
    )


def sup_con(s, z, labels, *, temperature):
    """Khosla et al. 2020, Eq. 2; the label -1 is no class."""
    label = np.repeat(labels, z.shape[1])
    losses = []
    for i, positives, negatives in roles(z):
        terms = softmax_terms(s, i, positives + negatives, temperature)
        positives += [k for k in negatives if label[k] == label[i] != -1]
        log_terms = [math.log(terms[p] / sum(terms.values())) for p in positives]
        losses.append(-sum(log_terms) / len(positives))
    return np.mean(losses)


ORACLES = {
    function.__name__: function
    for function in (nt_xent, nt_logistic, margin_triplet, dcl, dclw, sup_con)
}


def oracle(name, z, *labels, normalize=True, **settings):
    u = embed(z, normalize)
    return ORACLES[name]((u @ u.T).tolist(), z, *labels, **settings)


def slopes(name, s, z, settings):
    """(i, j, what Table 2 has before v+ or v- as the gradient of anchor i)."""
    if name == "nt_xent":
        temperature = settings["temperature"]
        for i, positives, negatives in roles(z):
            terms = softmax_terms(s, i, positives + negatives, temperature)
            p = {k: term / sum(terms.values()) for k, term in terms.items()}
            for j in positives:  # V > 2: the others are in the sum as negatives are
                yield i, j, -(1 - p[j]) / temperature / len(positives) / len(s)
                for k in set(p) - {j}:
                    yield i, k, p[k] / temperature / len(positives) / len(s)
        return
    chosen = list(triples(s, z, settings.get("semi_hard", False)))
    for i, j, k in chosen:
        if name == "nt_logistic":
            temperature = settings["temperature"]
            attraction = sigmoid(-s[i][j] / temperature) / temperature
            repulsion = sigmoid(s[i][k] / temperature) / temperature
        else:
            attraction = repulsion = float(s[i][j] - s[i][k] < settings["margin"])
        yield i, j, -attraction / len(chosen)
        yield i, k, repulsion / len(chosen)


def table_2_gradient(name, z, *, normalize=True, **settings):
    """SimCLR's closed forms; every view is anchor, positive and negative in turn."""
    u = embed(z, normalize)
    gradient = np.zeros_like(u)
    for i, j, slope in slopes(name, (u @ u.T).tolist(), z, settings):
        gradient[i] += slope * u[j]
        gradient[j] += slope * u[i]
    if normalize:  # through z / |z|: the part tangential to the sphere, over |z|
        radial = np.sum(gradient * u, axis=1, keepdims=True)
        lengths = np.linalg.norm(embed(z, normalize=False), axis=1, keepdims=True)
        gradient = (gradient - radial * u) / lengths
    return gradient.reshape(z.shape)


def slope(name, z, entry, *labels, **settings):
    """Central difference, exact to 1e-7 of the largest slopes here."""
    losses = []
    for step in (-1e-6, 1e-6):
        moved = z.astype(np.float64)
        moved[entry] += step
        losses.append(oracle(name, moved, *labels, **settings))
    return (losses[1] - losses[0]) / 2e-6


def tolerances(z, *, normalize=True, temperature=1.0, weight_temperature=0.5, **_):
    """(of a loss, of a gradient relative to its largest entry), from float32.

    Products of length K = 5 are off by about a unit of their last place, 2^-23 of
    them. Over T that is the error of a logit, and of a probability relative to it.
    DCLW has exponentials of products over sigma besides, of a pair and of all pairs.
    Together at T = 0.05 4e-6 for cosines, 2e-5 for plain products.
    """
    largest = np.max(np.sum(embed(z, normalize) ** 2, axis=1))
    error = 2.0**-23 * largest * (1 / temperature + 2 / weight_temperature)
    return 1e-6 + error, 1e-6 + error


def test_every_objective_is_here():
    tested = {objective.values[0] for objective in OBJECTIVES}
    assert set(LOSSES) == set(ORACLES) == tested


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_agrees_with_the_signatures(name):
    spec = LOSSES[name]
    want = ["z"] + ["labels"] * spec.needs_labels
    want += sorted([*spec.settings, *["streaming"] * spec.can_stream])
    parameters = inspect.signature(spec.function).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    by_keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert positional + sorted(by_keyword) == want


@pytest.mark.parametrize(("num_images", "num_views"), SHAPES)
@some_objectives
def test_loss_and_gradient(fidelity, name, options, num_images, num_views):
    z, *labels = inputs(name, projections(num_images, num_views))
    compare = functools.partial(fidelity, source=EQUATIONS)
    what = " with ".join([name, *options])
    entries = list(np.ndindex(z.shape))[:: max(1, z.size // 30)]
    for settings in settings_of(name, options):
        loss, gradient = value_and_gradient(name, z, *labels, **settings)
        want = oracle(name, z, *labels, **settings)
        atol, of_largest = tolerances(z, **settings)
        compare(f"{what}: loss", loss, want, rtol=1e-6, atol=atol)

        if name in ("nt_xent", "nt_logistic", "margin_triplet"):
            want = table_2_gradient(name, z, **settings)
            row = f"{what}: gradient in closed form"
            compare(row, gradient, want, of_largest=of_largest)

        want = [slope(name, z, entry, *labels, **settings) for entry in entries]
        got = [gradient[entry] for entry in entries]
        compare(
            f"{what}: gradient by central differences", got, want, of_largest=of_largest
        )


@pytest.mark.parametrize(
    "num_settings", [2, pytest.param(None, marks=pytest.mark.slow)]
)
@each_objective
def test_loss_of_64_images(fidelity, name, options, num_settings):
    """By default at the lowest temperature or margin."""
    args = inputs(name, projections(64))
    for settings in itertools.islice(settings_of(name, options), num_settings):
        got = LOSSES[name].function(*args, **settings)
        assert got.shape == ()
        assert got.dtype == jnp.float32
        want = oracle(name, *args, **settings)
        atol, _ = tolerances(args[0], **settings)
        row = " with ".join([name, *options]) + ": loss"
        fidelity(row, got, want, source=EQUATIONS, rtol=1e-6, atol=atol)


def test_semi_hard_negatives_by_hand():
    s = np.full((4, 4), 9.0)  # rows are anchors; 9 is no negative and must not be read
    s[:2, 2:] = [[0.4, 0.2], [0.5, 0.3]]
    s[2:, :2] = [[0.9, 0.2], [0.05, 0.07]]
    positives = np.array([[[9, 0.5], [0.5, 9]], [[9, 0.1], [0.1, 9]]])
    mined = similarities.semi_hard(s, similarities.other_images(2, 2), positives)
    # The second anchor has a negative as close as its positive, which is not farther;
    # the third has none that is farther.
    got = [mined[0, 0, 1], mined[0, 1, 0], mined[1, 0, 1], mined[1, 1, 0]]
    np.testing.assert_allclose(got, [0.4, 0.3, 0.2, 0.07])


@pytest.mark.parametrize("semi_hard", [True, False])
def test_triplet_on_the_margin_pulls_nowhere(semi_hard):
    """Table 2 has 0 there; a maximum with 0 would have half a gradient."""
    z = np.repeat(np.eye(2, dtype=np.float32)[:, None], 2, axis=1)
    loss, gradient = value_and_gradient(
        "margin_triplet", z, margin=1.0, semi_hard=semi_hard
    )
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("num_images", "num_views"),
    [
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(4, 2, marks=pytest.mark.slow),
        (4, 3),
    ],
)
@each_objective
def test_chance_is_the_loss_of_zeros(name, options, num_images, num_views):
    """Mined negatives do not change that loss, but a good encoder may stay there."""
    args = inputs(name, 0 * projections(num_images, num_views))
    for settings in settings_of(name, options):
        loss = LOSSES[name].function(*args, **settings)
        chance = functools.partial(LOSSES[name].chance, num_images, num_views)
        want = chance(**settings | {"semi_hard": False})
        np.testing.assert_allclose(loss, want, rtol=1e-6)
        if "semi_hard" in options:
            assert chance(**settings) is None


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [-1] * 4, [-1, 3, -1, 0]], ids=str)
@pytest.mark.parametrize("num_views", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_sup_con_without_shared_classes_is_nt_xent(labels, num_views):
    z = projections(4, num_views)
    for settings in settings_of("sup_con", {}):
        got = value_and_gradient("sup_con", z, np.array(labels), **settings)
        want = value_and_gradient("nt_xent", z, **settings)
        atol, of_largest = tolerances(z, **settings)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6, atol=atol)
        atol = of_largest * np.abs(want[1]).max()
        np.testing.assert_allclose(got[1], want[1], rtol=0, atol=atol)


@each_objective
def test_order_of_images_and_of_views_does_not_matter(name, options):
    args = inputs(name, projections(4))
    settings = first_setting(name, options)
    loss, gradient = value_and_gradient(name, *args, **settings)
    order = np.random.default_rng(1).permutation(4)
    moved = [x[order] for x in args]
    moved[0] = moved[0][:, ::-1]
    got = value_and_gradient(name, *moved, **settings)
    np.testing.assert_allclose(got[0], loss, rtol=1e-5)
    atol = 1e-5 * np.abs(gradient).max()
    np.testing.assert_allclose(got[1], gradient[order][:, ::-1], rtol=0, atol=atol)


@each_objective
def test_lengths_matter_only_if_not_normalised(name, options):
    z, *labels = inputs(name, projections(4))
    lengths = np.linspace(0.5, 3, z[..., 0].size, dtype=np.float32)
    scaled = z * lengths.reshape(z.shape[:2])[..., None]
    settings = first_setting(name, options)
    loss, gradient = value_and_gradient(name, z, *labels, **settings)
    np.testing.assert_allclose(np.sum(gradient * z, axis=2), 0, atol=1e-5)
    loss_of = functools.partial(LOSSES[name].function, **settings)
    np.testing.assert_allclose(loss_of(scaled, *labels), loss, rtol=1e-5)
    plain = [loss_of(x, *labels, normalize=False) for x in (z, scaled)]
    assert abs(plain[0] - plain[1]) > 0.01


EDGES = {
    "zeros": lambda z: 0 * z,
    "one zero": lambda z: z * (np.arange(z.size) >= z.shape[2]).reshape(z.shape),
    "huge": lambda z: 1e4 * z,
    "tiny": lambda z: 1e-4 * z,
    "views alike": lambda z: np.repeat(z[:, :1], z.shape[1], axis=1),
    "all alike": lambda z: np.broadcast_to(z[0, 0], z.shape),
    "bfloat16": lambda z: z.astype(jnp.bfloat16),
}


@pytest.mark.parametrize("edge", EDGES)
@each_objective
def test_edges(name, options, edge):
    """At the lowest temperature or margin; exponentials of huge products overflow."""
    z, *labels = inputs(name, projections(4))
    z = EDGES[edge](z)
    cosines, plain, *_ = settings_of(name, options)
    for settings in [cosines] if edge == "huge" else [cosines, plain]:
        loss, gradient = value_and_gradient(name, z, *labels, **settings)
        assert loss.dtype == jnp.float32
        assert gradient.dtype == z.dtype
        assert jnp.isfinite(gradient).all()
        want = oracle(name, z, *labels, **settings)
        atol, _ = tolerances(z, **settings)
        np.testing.assert_allclose(loss, want, rtol=1e-6, atol=atol)


@few_objectives
def test_eight_devices_are_one(name, options):
    """Compiled and split on images, the loss is still that of the whole batch."""
    args = inputs(name, projections(16))
    split = jax.device_put(args, batch_sharding(create_mesh()))
    assert len(split[0].sharding.device_set) == 8
    settings = first_setting(name, options)
    loss, gradient = value_and_gradient(name, *args, jit=True, **settings)
    got = value_and_gradient(name, *split, jit=True, **settings)
    np.testing.assert_allclose(got[0], loss, rtol=1e-6)
    atol = 1e-6 * np.abs(gradient).max()
    np.testing.assert_allclose(got[1], gradient, rtol=0, atol=atol)


@each_objective
def test_products_are_in_full_float32(name, options):
    """Where the default precision is lower (TPU, GPU), also in the backward pass."""
    loss = functools.partial(LOSSES[name].function, **first_setting(name, options))
    text = jax.jit(jax.grad(loss)).lower(*inputs(name, projections(4))).as_text()
    products = [x for x in text.splitlines() if "stablehlo.dot_general" in x]
    assert len(products) >= 3
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("value", [0, -0.1, math.nan])
@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, "temperature") for name in LOSSES if name != "margin_triplet"]
    + [("margin_triplet", "margin"), ("dclw", "weight_temperature")],
)
def test_settings_that_are_not_positive_are_named(name, setting, value):
    settings = first_setting(name, {}) | {setting: value}
    with pytest.raises(ValueError, match=f"^{setting}={value}: must be positive"):
        LOSSES[name].function(*inputs(name, projections(4)), **settings)


@pytest.mark.parametrize("shape", [(4, 8), (4, 1, 8), (4, 2, 2, 8), (1, 2, 8)], ids=str)
@each_objective
def test_bad_shapes_are_named(name, options, shape):
    args = inputs(name, np.ones(shape, np.float32))
    settings = first_setting(name, options)
    if shape == (1, 2, 8) and name in ("nt_xent", "sup_con"):
        # The positive is the only candidate.
        assert LOSSES[name].function(*args, **settings) == 0
        return
    need = "B >= 2" if shape[0] == 1 else "V >= 2"
    with pytest.raises(ValueError, match=rf"{re.escape(str(shape))}: must .*{need}"):
        LOSSES[name].function(*args, **settings)


@pytest.mark.parametrize("shape", [(3,), (4, 1), (4, 2), ()], ids=str)
def test_labels_must_be_one_for_each_image(shape):
    labels = np.zeros(shape, np.int32)
    with pytest.raises(ValueError, match=re.escape(f"{shape}: must be (4,)")):
        LOSSES["sup_con"].function(projections(4), labels, temperature=0.1)
