"""The augmentations of `augment.py`, fast on the host's cores.

Same draws, same views, up to rounding. What makes the difference: pixels are decoded
only in the rows that a crop needs; colours, flips and blur are compiled by XLA and
fused, with one branch for each order of the jitter's three costly adjustments; blur
takes only the taps that its sigma needs. `augment.py` stays the definition, and the
operations that SimCLR's own composition does not have are taken from there.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from simclr_jax.data import augment, batched
from simclr_jax.data.batched import Planes, Settings
from simclr_jax.data.composition import Composition
from simclr_jax.data.draws import between, jitter_factors, jitter_order, split
from simclr_jax.data.tf_cpu import tf

Draws = dict[str, tf.Tensor]

BACKEND = batched.Backend(
    numpy=SimpleNamespace(
        abs=tf.abs,
        argsort=tf.argsort,
        exp=tf.exp,
        flip=lambda x, axis: tf.reverse(x, [axis]),
        floor=tf.floor,
        maximum=tf.maximum,
        mean=tf.reduce_mean,
        minimum=tf.minimum,
        pad=tf.pad,
        reshape=tf.reshape,
        rint=tf.round,
        sqrt=tf.sqrt,
        square=tf.square,
        stack=tf.stack,
        sum=tf.reduce_sum,
        swapaxes=lambda x, i, j: tf.linalg.matrix_transpose(x),  # always the last two
        where=tf.where,
    ),
    cast=tf.cast,
    matmul=tf.matmul,
    normal=lambda u, shape: tf.map_fn(lambda own: augment.normal_pixels(own, shape), u),
)

_compiled = functools.partial(tf.function, jit_compile=True, autograph=False)

# Operations that are compiled; a run of them in a composition becomes one program.
_FAST = ("flip", "color_jitter", "grayscale", "blur")


# On planes [1, H, W] of one image -----------------------------------------------------

# Above, the adjustments of a jitter are programs of their own, chosen one after the
# other: fused, they would compute each other's pixels many times over. Below, choosing
# takes longer than computing, and all orders of them are compiled.
_LARGEST_FUSED = 64


def _adjustments(
    u: tf.Tensor, *, brightness_mode: str, **ranges: float
) -> tuple[tf.Tensor, dict[str, Callable[[Planes], Planes]]]:
    """The factor of brightness, and the other adjustments of a jitter, clipped."""
    bright, contrast, saturation, turns = jitter_factors(
        u, brightness_mode=brightness_mode, **ranges
    )

    def clipped(
        adjust: Callable[[Planes, tf.Tensor, batched.Backend], Planes], by: tf.Tensor
    ) -> Callable[[Planes], Planes]:
        return lambda x: batched.clip(adjust(x, by, BACKEND), BACKEND)

    return bright, {
        "contrast": clipped(batched.adjust_contrast, contrast),
        "saturation": clipped(batched.adjust_saturation, saturation),
        "hue": clipped(batched.adjust_hue, turns),
    }


def _jitter(
    planes: Planes, u: tf.Tensor, *, probability: float, **settings: Any
) -> Planes:
    """`augment.color_jitter`: at each place one of the four adjustments is chosen."""
    bright, others = _adjustments(u, **settings)

    def brighten(x: Planes) -> Planes:
        mode = settings["brightness_mode"]
        x = batched.adjust_brightness(x, bright, BACKEND, mode=mode)
        return batched.clip(x, BACKEND)

    adjust = [brighten, *others.values()]
    order = tf.argsort(jitter_order(u))[0]
    acts = u[0, 0] < probability

    def at(place: int, x: Planes) -> Planes:
        which = tf.where(acts, order[place], len(adjust))
        branches = [functools.partial(one, x) for one in adjust]
        return Planes(*tf.switch_case(which, [*branches, lambda: x]))

    for place in range(4):
        planes = at(place, planes)
    return planes


_ORDERS = tuple(itertools.permutations(("contrast", "saturation", "hue")))
_UNBOUNDED = 3e38


def _jitter_fused(
    planes: Planes, u: tf.Tensor, *, probability: float, **settings: Any
) -> Planes:
    """The same with one branch for each order of the adjustments but brightness.

    That has its place before, between or behind the other three; there its factor and
    clipping act, and 1 (or, added, 0) and no bounds at the other places.
    """
    bright, others = _adjustments(u, **settings)
    order = tf.argsort(jitter_order(u))[0]
    place = tf.argmin(order, output_type=tf.int32)  # of brightness, which is 0
    rest = [tf.where(place <= i, order[i + 1], order[i]) for i in range(3)]
    here = tf.equal(tf.range(4), place)
    additive = settings["brightness_mode"] == "additive"
    factor = tf.where(here, bright, 0.0 if additive else 1.0)
    low = tf.where(here, 0.0, -_UNBOUNDED)
    high = tf.where(here, 1.0, _UNBOUNDED)

    def brighten(x: Planes, number: int) -> Planes:
        own = factor[number]
        x = x.map(lambda plane: plane + own if additive else plane * own)
        return x.map(lambda p: tf.minimum(tf.maximum(p, low[number]), high[number]))

    def in_order(names: tuple[str, ...]) -> Planes:
        result = brighten(planes, 0)
        for number, name in enumerate(names):
            result = brighten(others[name](result), number + 1)
        return result

    branches = [functools.partial(in_order, names) for names in _ORDERS]
    # The orders are sorted by their first name, then by the second.
    which = (rest[0] - 1) * 2 + tf.cast(rest[1] > rest[2], tf.int32)
    which = tf.where(u[0, 0] < probability, which, len(branches))
    return Planes(*tf.switch_case(which, [*branches, lambda: planes]))


def _colour(planes: Planes, own: Draws, settings: Settings) -> Planes:
    """The operations named in `own` but blur, in its order; draws are [count]."""
    for name, u in own.items():
        if name == "color_jitter":
            fused = planes.r.shape[1] <= _LARGEST_FUSED
            jitter = _jitter_fused if fused else _jitter
            planes = jitter(planes, u[None], **settings[name])
        elif name != "blur":
            operation = batched.OPERATIONS[name]
            planes = operation(planes, u[None], BACKEND, **settings[name])
    return planes


def _pack(planes: Planes) -> tf.Tensor:
    """Planes [1, H, W] to uint8 [H, W, 3]; values outside [0, 1] are clipped."""
    levels = [
        tf.round(tf.clip_by_value(plane[0], 0.0, 1.0) * 255.0) for plane in planes
    ]
    return tf.cast(tf.stack(levels, axis=-1), tf.uint8)


# Taps beyond four standard deviations weigh 3e-4 of the middle one and less.
_BLUR_REACH = 4.0
_BLUR_STEP = 2  # radii are multiples, so that few programs do


def _blur_radii(sigma_max: float, kernel_size: int) -> list[int]:
    """Radii that are compiled; the last is that of the kernel or enough for any sigma."""
    full = kernel_size // 2
    enough = int(np.ceil(_BLUR_REACH * sigma_max))
    return [*range(_BLUR_STEP, min(full, enough), _BLUR_STEP), min(full, enough)]


def _blur(planes: Planes, sigma: tf.Tensor, radius: int, kernel_size: int) -> Planes:
    """`augment.gaussian_blur` with the taps of the full kernel up to `radius`."""
    full = kernel_size // 2
    taps = tf.exp(-np.square(np.arange(full + 1.0, dtype=np.float32)) / (2 * sigma**2))
    taps = taps / (2.0 * tf.reduce_sum(taps) - taps[0])

    def along(x: tf.Tensor, axis: int) -> tf.Tensor:
        size = x.shape[axis]
        padding = [[0, 0], [0, 0], [0, 0]]
        padding[axis] = [radius, radius]
        padded = tf.pad(x, padding)

        def shifted(offset: int) -> tf.Tensor:
            start = [0, 0, 0]
            start[axis] = radius + offset
            return tf.slice(padded, start, x.shape)

        assert size is not None
        result = taps[0] * x
        for offset in range(1, radius + 1):
            both = shifted(offset) + shifted(-offset)
            result += taps[offset] * both
        return result

    return planes.map(lambda x: along(along(tf.clip_by_value(x, 0.0, 1.0), 2), 1))


# Compositions -------------------------------------------------------------------------

# One image: [S, 3, S] to [S, 3, S], given the draws [D] of its view.
_Step = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def _runs(operations: Sequence[str]) -> list[tuple[str, ...]]:
    """Neighbouring operations that make one program; blur and slow ones stand alone."""
    runs: list[tuple[str, ...]] = []
    for name in operations:
        joins = name in _FAST and name != "blur"
        if joins and runs and runs[-1][-1] in _FAST and runs[-1][-1] != "blur":
            runs[-1] = (*runs[-1], name)
        else:
            runs.append((name,))
    return runs


def _split_planes(x: tf.Tensor) -> Planes:
    """[S, 3, S], rows of red, green and blue, as planes [1, S, S]."""
    return Planes(x[None, :, 0], x[None, :, 1], x[None, :, 2])


def _join_planes(planes: Planes) -> tf.Tensor:
    return tf.stack([plane[0] for plane in planes], axis=1)


def _colour_step(
    run: tuple[str, ...], operations: Sequence[str], settings: Settings
) -> _Step:
    def step(x: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        own = {name: split(u, operations)[name] for name in run}
        return _join_planes(_colour(_split_planes(x), own, settings))

    return step


def _blur_step(operations: Sequence[str], settings: Settings, image_size: int) -> _Step:
    """Blur with one of a few radii, or none."""
    values = settings["blur"]
    kernel_size = int(np.float32(image_size) * np.float32(values["kernel_fraction"]))
    radii = _blur_radii(values["sigma_max"], kernel_size)

    def step(x: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        whether, place = tf.unstack(split(u, operations)["blur"])
        sigma = between(place, values["sigma_min"], values["sigma_max"])

        def blurred(radius: int) -> tf.Tensor:
            return _join_planes(_blur(_split_planes(x), sigma, radius, kernel_size))

        branches = [functools.partial(blurred, radius) for radius in radii]
        needed = tf.cast(tf.math.ceil(sigma * _BLUR_REACH), tf.int32)
        which = tf.reduce_sum(tf.cast(needed > np.array(radii[:-1]), tf.int32))
        which = tf.where(whether < values["probability"], which, len(branches))
        return tf.switch_case(which, [*branches, lambda: x])

    return step


def _plain_step(name: str, operations: Sequence[str], settings: Settings) -> _Step:
    def step(x: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        image = tf.transpose(x, (0, 2, 1))
        own = split(u, operations)[name]
        image = augment.OPERATIONS[name](image, own, **settings[name])
        return tf.transpose(image, (0, 2, 1))

    return step


def _steps(
    operations: Sequence[str], settings: Settings, image_size: int
) -> list[tuple[_Step, bool]]:
    """The steps behind the crop, and whether they can be compiled."""
    steps = []
    for run in _runs([name for name in operations if name != "crop"]):
        if run == ("blur",):
            step = _blur_step(operations, settings, image_size)
        elif run[0] in _FAST:
            step = _colour_step(run, operations, settings)
        else:
            step = _plain_step(run[0], operations, settings)
        steps.append((step, run[0] in _FAST))
    return steps


# Cached, since what is compiled for one pipeline then serves the next.
@functools.lru_cache(maxsize=8)
def compose(composition: Composition) -> Callable[..., tf.Tensor]:
    """The same function as that of `augment.compose`, fast."""
    operations, image_size = composition.operations, composition.image_size
    settings = composition.settings
    # Neighbouring fast steps are one program; the last one writes the pixels too.
    programs: list[_Step] = []
    waiting: list[_Step] = [lambda levels, u: tf.transpose(levels / 255.0, (0, 2, 1))]
    for step, fast in _steps(operations, settings, image_size):
        if fast:
            waiting.append(step)
        else:
            programs += [_compiled(_chain(waiting)), step]
            waiting = []
    waiting.append(lambda x, u: _pack(_split_planes(x)))
    whole = _chain([*programs, _compiled(_chain(waiting))])

    def view(image: tf.Tensor, box: Sequence[tf.Tensor], u: tf.Tensor) -> tf.Tensor:
        y, x, height, width = box
        crop = tf.slice(image, [y, x, 0], [height, width, 3])
        # Levels, not [0, 1]: the crop may be larger than its view.
        levels = tf.image.resize(
            tf.cast(crop, tf.float32), (image_size, image_size), method="bicubic"
        )
        return whole(tf.ensure_shape(levels, (image_size, image_size, 3)), u)

    return view


def _chain(steps: Sequence[_Step]) -> _Step:
    steps = tuple(steps)

    def chained(x: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        for step in steps:
            x = step(x, u)
        return x

    return chained


@functools.lru_cache(maxsize=8)
def compose_batch(
    composition: Composition,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """The same for many images of one size.

    Returns:
      views(images uint8 [n, H, W, 3], boxes int32 [n, V, 4], u [n, V, D]) -> uint8
      [n, V, S, S, 3].
    """
    operations, image_size = composition.operations, composition.image_size
    settings = composition.settings
    if not set(operations) <= {"crop", *_FAST}:
        return _in_batch(
            batched.compose(operations, settings, image_size=image_size, xp=BACKEND)
        )
    steps = _steps(operations, settings, image_size)

    def views(images: tf.Tensor, u: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        planes = batched.to_planes(tf.cast(images, tf.float32) / 255.0)
        planes = batched.crop_and_resize(planes, boxes, (image_size,) * 2, BACKEND)

        def one(arguments: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            x, own = arguments
            for step, _ in steps:
                x = step(x, own)
            return _pack(_split_planes(x))

        rows = tf.stack(planes, axis=2)
        return tf.map_fn(one, (rows, u), fn_output_signature=tf.uint8)

    return _in_batch(views)


def _in_batch(
    views: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """Compiles a function of [n * V] views for arguments [n, V, ...]."""

    @_compiled
    def of_images(images: tf.Tensor, boxes: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        number, num_views, _ = u.shape
        merged = views(
            tf.repeat(images, num_views, axis=0),
            tf.reshape(u, (number * num_views, -1)),
            tf.reshape(boxes, (number * num_views, 4)),
        )
        return tf.reshape(merged, (number, num_views, *merged.shape[1:]))

    return of_images
