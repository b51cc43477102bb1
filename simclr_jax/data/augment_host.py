"""The augmentations of `augment.py`, fast on the host's cores.

Same draws, same views, up to rounding. What makes the difference: flip, colours and
blur are one program, compiled by XLA, that works on planes and branches by the draws of
a view; blur takes only the taps that its sigma needs; a grey view is blurred once, not
three times; small images of one size are cropped by the chunk, as products of matrices.
`augment.py` stays the definition, and the operations that SimCLR's own composition does
not have are taken from there.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from simclr_jax.data import augment, batched
from simclr_jax.data.batched import Planes
from simclr_jax.data.composition import Composition
from simclr_jax.data.draws import between, jitter_factors, jitter_order, split
from simclr_jax.data.tf_cpu import tf

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

# Operations that are compiled; neighbours become one program.
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

    def computed_once(x: Planes) -> Planes:
        # XLA does not see that a uniform number is below 2, and does not look through a
        # branch: elsewhere it computes x again for each of its uses.
        return Planes(*tf.cond(u[0, 0] < 2.0, lambda: x, lambda: planes))

    def in_order(names: tuple[str, ...]) -> Planes:
        result = brighten(planes, 0)
        for number, name in enumerate(names):
            result = brighten(others[name](result), number + 1)
            if number < len(names) - 1:
                result = computed_once(result)
        return result

    branches = [functools.partial(in_order, names) for names in _ORDERS]
    # The orders are sorted by their first name, then by the second.
    which = (rest[0] - 1) * 2 + tf.cast(rest[1] > rest[2], tf.int32)
    which = tf.where(u[0, 0] < probability, which, len(branches))
    return Planes(*tf.switch_case(which, [*branches, lambda: planes]))


# Taps beyond 3.5 standard deviations weigh 2e-3 of the middle one and less, all of them
# together 5e-4 of the sum: an eighth of a level at most.
_BLUR_REACH = 3.5
_BLUR_STEP = 2  # radii are multiples, so that few programs do


def _blur_radii(sigma_max: float, kernel_size: int) -> list[int]:
    """Radii that are compiled; the last is the kernel's, or enough for any sigma."""
    last = min(kernel_size // 2, int(np.ceil(_BLUR_REACH * sigma_max)))
    return [*range(_BLUR_STEP, last, _BLUR_STEP), last]


def _blur(plane: tf.Tensor, sigma: tf.Tensor, radius: int) -> tf.Tensor:
    """`augment.gaussian_blur` of a plane [1, H, W], no farther than `radius`."""
    taps = tf.exp(
        -np.square(np.arange(radius + 1, dtype=np.float32)) / (2.0 * tf.square(sigma))
    )
    taps = taps / (2.0 * tf.reduce_sum(taps) - taps[0])

    def along(x: tf.Tensor, axis: int) -> tf.Tensor:
        padding = [[0, 0], [0, 0], [0, 0]]
        padding[axis] = [radius, radius]
        padded = tf.pad(x, padding)

        def shifted(offset: int) -> tf.Tensor:
            start = [0, 0, 0]
            start[axis] = radius + offset
            return tf.slice(padded, start, x.shape)

        # Not x itself, which XLA would compute once more.
        result = taps[0] * shifted(0)
        for offset in range(1, radius + 1):
            result += taps[offset] * (shifted(offset) + shifted(-offset))
        return result

    return along(along(tf.clip_by_value(plane, 0.0, 1.0), 2), 1)


def _scaled(levels: tf.Tensor) -> Planes:
    """[H, W, 3] from 0 to 255 as planes [1, H, W] from 0 to 1."""
    return batched.to_planes(levels[None] / 255.0)


def _pack(planes: Planes) -> tf.Tensor:
    """Planes [1, H, W] to int32 [H, W], 256 levels of each colour in a number.

    Values outside [0, 1] are clipped. Branches hand on a third of the bytes so.
    """
    levels = batched.clip(planes, BACKEND).map(lambda x: tf.round(x[0] * 255.0))
    r, g, b = levels.map(lambda x: tf.cast(x, tf.int32))
    return r + g * 2**8 + b * 2**16


def _unpack(packed: tf.Tensor) -> tf.Tensor:
    """`_pack`'s numbers to uint8 [H, W, 3]; stacking planes of bytes takes longer."""
    shifted = tf.bitwise.right_shift(packed[..., None], np.array([0, 8, 16], np.int32))
    return tf.cast(tf.bitwise.bitwise_and(shifted, 255), tf.uint8)


# Compositions -------------------------------------------------------------------------

# A step takes planes [1, S, S] of one image and the draws [D] of its view.
_Step = Callable[[Planes, tf.Tensor], Planes]


class _Steps:
    """The steps of one composition."""

    def __init__(self, composition: Composition) -> None:
        self._operations = composition.operations
        self._settings = composition.settings
        self._small = composition.image_size <= _LARGEST_FUSED
        self._kernel_size = int(
            np.float32(composition.image_size)
            * np.float32(composition.settings.get("blur", {}).get("kernel_fraction", 0))
        )

    def all(self) -> tuple[Any, list[tuple[_Step, bool]], Any]:
        """(from levels [S, S, 3], operations and whether fast, to uint8 [S, S, 3])."""
        names = [name for name in self._operations if name != "crop"]
        flips_first = names[:1] == ["flip"]
        if flips_first:
            names = names[1:]
        # What the last step does besides writing pixels.
        last: list[str] = []
        for ending in (["grayscale"], ["blur"], ["grayscale", "blur"]):
            if names[-len(ending) :] == ending:
                last = ending
        names = names[: len(names) - len(last)]

        def start(levels: tf.Tensor, u: tf.Tensor) -> Planes:
            if not flips_first:
                return _scaled(levels)
            return tf.cond(
                self._acts("flip", u),
                lambda: _scaled(tf.reverse(levels, [1])),
                lambda: _scaled(levels),
            )

        steps = [self._step(name) for name in names]
        return start, steps, functools.partial(self._finish, last)

    def _own(self, name: str, u: tf.Tensor) -> tf.Tensor:
        return split(u, self._operations)[name]

    def _acts(self, name: str, u: tf.Tensor) -> tf.Tensor:
        return self._own(name, u)[0] < self._settings[name]["probability"]

    def _step(self, name: str) -> tuple[_Step, bool]:
        """An operation between others, and whether it can be compiled."""
        settings = self._settings[name]
        if name not in _FAST:

            def plain(planes: Planes, u: tf.Tensor) -> Planes:
                image = batched.from_planes(planes, BACKEND)[0]
                operation = augment.OPERATIONS[name]
                image = operation(image, self._own(name, u), **settings)
                return batched.to_planes(image[None])

            return plain, False

        def fast(planes: Planes, u: tf.Tensor) -> Planes:
            own = self._own(name, u)[None]
            if name == "color_jitter":
                jitter = _jitter_fused if self._small else _jitter
                return jitter(planes, own, **settings)
            if name == "blur":
                return self._with_blur(u, planes.map)
            return batched.OPERATIONS[name](planes, own, BACKEND, **settings)

        return fast, True

    def _with_blur(
        self, u: tf.Tensor, make: Callable[[Callable[[tf.Tensor], tf.Tensor]], Any]
    ) -> Any:
        """Of make(blur), the branch with the blur that a view needs, or none."""
        values = self._settings["blur"]
        radii = _blur_radii(values["sigma_max"], self._kernel_size)
        place = self._own("blur", u)[1]
        sigma = between(place, values["sigma_min"], values["sigma_max"])
        needed = tf.cast(tf.math.ceil(sigma * _BLUR_REACH), tf.int32)
        which = tf.reduce_sum(tf.cast(needed > np.array(radii[:-1]), tf.int32))
        which = tf.where(self._acts("blur", u), which, len(radii))
        branches = [
            functools.partial(
                make, functools.partial(_blur, sigma=sigma, radius=radius)
            )
            for radius in radii
        ]
        return tf.switch_case(which, [*branches, lambda: make(lambda plane: plane)])

    def _finish(self, names: list[str], planes: Planes, u: tf.Tensor) -> tf.Tensor:
        """Grey, blur and pixels: a grey view is one plane to blur."""

        def grey(blur: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
            plane = blur(batched.to_grayscale(planes, BACKEND).r)
            return _pack(Planes(plane, plane, plane))

        def coloured(blur: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
            return _pack(planes.map(blur))

        def blurred(make: Callable[..., tf.Tensor]) -> tf.Tensor:
            return self._with_blur(u, make) if "blur" in names else make(lambda x: x)

        if "grayscale" not in names:
            return _unpack(blurred(coloured))
        greys = self._acts("grayscale", u)
        return _unpack(tf.cond(greys, lambda: blurred(grey), lambda: blurred(coloured)))


# Cached, since what is compiled for one pipeline then serves the next.
@functools.lru_cache(maxsize=8)
def compose(composition: Composition) -> Callable[..., tf.Tensor]:
    """The same function as that of `augment.compose`, fast."""
    image_size = composition.image_size
    start, steps, finish = _Steps(composition).all()
    if not set(composition.operations) - {"crop"}:
        # Nothing to do on planes.
        start, finish = _levels, _same
    # Neighbouring fast steps are one program.
    programs: list[Any] = []
    waiting = [start]
    for step, fast in steps:
        if fast:
            waiting.append(step)
        else:
            programs += [_compiled(_chain(waiting)), step]
            waiting = []
    whole = _chain([*programs, _compiled(_chain([*waiting, finish]))])

    def view(image: tf.Tensor, box: Sequence[tf.Tensor], u: tf.Tensor) -> tf.Tensor:
        y, x, height, width = box
        crop = tf.slice(image, [y, x, 0], [height, width, 3])
        # Levels, not [0, 1]: the crop may be larger than its view.
        levels = tf.image.resize(
            tf.cast(crop, tf.float32), (image_size, image_size), method="bicubic"
        )
        return whole(tf.ensure_shape(levels, (image_size, image_size, 3)), u)

    return view


def _levels(levels: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """The nearest of 256 levels."""
    del u
    return tf.cast(tf.round(tf.clip_by_value(levels, 0.0, 255.0)), tf.uint8)


def _same(x: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    del u
    return x


def _chain(steps: Sequence[Any]) -> Any:
    steps = tuple(steps)

    def chained(x: Any, u: tf.Tensor) -> Any:
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
    _, steps, finish = _Steps(composition).all()
    one_view = _chain([*(step for step, _ in steps), finish])

    def views(images: tf.Tensor, u: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        planes = batched.to_planes(tf.cast(images, tf.float32) / 255.0)
        planes = batched.crop_and_resize(planes, boxes, (image_size,) * 2, BACKEND)
        if operations[:2] == ("crop", "flip") or operations[:1] == ("flip",):
            own = split(u, operations)["flip"]
            planes = batched.random_flip(planes, own, BACKEND, **settings["flip"])
        return tf.map_fn(
            lambda view: one_view(view[0].map(lambda plane: plane[None]), view[1]),
            (planes, u),
            fn_output_signature=tf.uint8,
        )

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
