"""SimCLR's augmentations of one view, as machine code for a core of the host.

The operations of `definition.py`, compiled by Numba. A view is computed row by row, and
a row, as three planes, goes through all operations while it is in the core's nearest
cache. Only two operations need more than one row: contrast, which needs the mean of all
rows, and the second half of blur. A pass over all rows ends at such a `barrier`.
Operations that a view's draws leave out cost nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from simclr_jax.data.sampling.draws import COUNTS


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compiles for this machine's processor once and caches the result on disk.

    Sums are not reordered, so all machines with fused multiply-add have the same
    results.
    """
    options |= {"nogil": True, "error_model": "numpy"}
    options["fastmath"] = {"contract", "nnan", "nsz"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written.
        return numba.njit(**options)(function)


_inlined = functools.partial(_compiled, forceinline=True)
Array = np.ndarray
# Red, green and blue, each float32 [n S]: n consecutive rows of a view.
_Strip = tuple[Array, Array, Array]
_F = np.float32
_ONE, _ZERO = np.float32(1), np.float32(0)

# The operations that a program can hold.
OPERATIONS = ("flip", "color_jitter", "grayscale", "blur")
_FLIP, _JITTER, _GRAYSCALE, _BLUR_OP = range(len(OPERATIONS))
# A line of a program: which operation, the first of its draws, its probability, four
# ranges as (low, width), and a number: the radius of the largest blur, or whether
# brightness is added.
PROGRAM_WIDTH = 12
RANGES, NUMBER = 3, 11
# Draws of each operation; repeated here, since Numba's cache depends on this file only.
_COUNTS = (1, 9, 1, 2)
assert tuple(COUNTS[name] for name in OPERATIONS) == _COUNTS

# The steps of a view, after its draws. The adjustments of a jitter are numbered as in
# `draws.jitter_factors`.
_BRIGHTEN, _CONTRAST, _SATURATE, _TURN, _FLIP_ROW, _GREY, _BLUR = range(7)
_MOST_STEPS = 4 * len(OPERATIONS)  # of a program that has each once, and more

# Where the rows of the first pass come from: a crop of an image, resized, or a view
# that earlier operations returned.
_RESIZED, _AS_THEY_ARE = -1, -2
_END = -3  # the last pass writes its rows to the output

_GRAY_WEIGHTS = (_F(0.2989), _F(0.5870), _F(0.1140))  # the reference's
_TABLE_SIZE = 1024  # sub-pixel positions of TensorFlow's bicubic weights
_TINY = 1e-30
_LEVEL = _F(1 / 255)
# A tap beyond 3.5 standard deviations weighs at most 2e-3 of the middle tap, and all of
# them weigh 5e-4 of the sum: an eighth of a level at most, in each direction.
BLUR_REACH = 3.5


@_compiled
def _unit(x: Any) -> Any:
    """Clipped to [0, 1]."""
    return min(max(x, _ZERO), _ONE)


# Crop and resize ----------------------------------------------------------------------


class _Taps(NamedTuple):
    """Bicubic resizing of an axis to S pixels.

    Attributes:
      first: int32 [S], the first of the pixels of each result; a pixel outside the
        part has weight 0.
      weight: float32 [4, S]; antialiased [S, `_num_taps`].
    """

    first: Array
    weight: Array


@_compiled
def _near(x: Any) -> Any:
    """Keys' cubic with a = -0.5 at distances up to 1."""
    return (_F(1.5) * x - _F(2.5)) * x * x + _ONE


@_compiled
def _far(x: Any) -> Any:
    """The same at distances from 1 to 2."""
    return ((_F(-0.5) * x + _F(2.5)) * x - _F(4)) * x + _F(2)


@_compiled
def _num_taps(length: int, size: int) -> int:
    """The most pixels of `length` that a pixel of `size` needs: an even number."""
    return 2 * math.ceil(2 * max(length / size, 1.0))


@_compiled
def _set_antialiased_taps(taps: _Taps, length: int) -> None:
    """Pillow's bicubic resizing of `length` pixels: a wider cubic where they shrink."""
    first, weight = taps
    size, count = weight.shape
    scale = length / size
    width = max(scale, 1.0)
    for i in range(size):
        centre = (i + 0.5) * scale
        start = max(min(int(centre - 2 * width + 0.5), length - count), 0)
        first[i] = start
        total = _ZERO
        for k in range(count):
            x = abs(_F((start + k + 0.5 - centre) / width))
            weight[i, k] = _near(x) if x < _ONE else _far(min(x, _F(2)))
            if start + k >= length:
                weight[i, k] = _ZERO
            total += weight[i, k]
        for k in range(count):
            weight[i, k] /= total


@_compiled
def _set_taps(taps: _Taps, length: int, antialias: bool) -> None:
    """Bicubic resizing of `length` pixels: Pillow's with antialiasing, or TensorFlow's.

    TensorFlow's: half-pixel centres, no antialiasing, Keys' cubic with a = -0.5 looked
    up at 1024 positions, taps outside the part dropped and the others scaled to sum 1.
    """
    if antialias:
        _set_antialiased_taps(taps, length)
        return
    first, weight = taps
    one, two, three, four = weight[0], weight[1], weight[2], weight[3]
    scale = _F(length) / _F(first.size)
    for i in range(first.size):
        centre = (_F(i) + _F(0.5)) * scale - _F(0.5)
        base = np.floor(centre)
        at = np.int32(base)
        x = np.rint((centre - base) * _F(_TABLE_SIZE)) * _F(1 / _TABLE_SIZE)
        v = _far(_ONE + x) if at >= 1 else _ZERO
        w = _near(x) if at >= 0 else _ZERO
        s = _near(_ONE - x) if at + 1 < length else _ZERO
        t = _far(_F(2) - x) if at + 2 < length else _ZERO
        total = v + w + s + t
        first[i] = at - 1
        one[i], two[i], three[i], four[i] = v / total, w / total, s / total, t / total


@_compiled
def _mirror(taps: _Taps, antialias: bool) -> None:
    """Taps of the mirrored result."""
    taps.first[:] = taps.first[::-1].copy()
    if antialias:
        taps.weight[:] = taps.weight[::-1].copy()
    else:
        taps.weight[:] = taps.weight[:, ::-1].copy()


# Pixels of `line` on either side of a row, for taps outside a crop.
_BORDER = 3


@_inlined
def _weighed(line: Array, i: Any, v: Any, w: Any, s: Any, t: Any) -> Any:
    """Weighted sum of four neighbours of one colour."""
    second, third, fourth = i + np.uint64(3), i + np.uint64(6), i + np.uint64(9)
    return v * line[i] + w * line[second] + s * line[third] + t * line[fourth]


@intrinsic
def _weigh_pixels(
    _context: Any,
    lines: Any,
    at: Any,
    weight: Any,
    own: Any,
    count: Any,
    narrowed: Any,
    to: Any,
) -> Any:
    """Weighted sums of `count` neighbouring pixels in each of two rows.

    The colours of a pixel in both rows are one vector, which the compiler does not
    find by itself. Reads a number beyond the last pixel.

    Args:
      lines: two float32 arrays, interleaved rows.
      at: where the first of the pixels begins.
      weight: float32.
      own: where the weights begin.
      count: of pixels, even and not 0.
      narrowed: two float32 arrays, to which four numbers are written: red, green,
        blue, and one without a meaning.
      to: where they are written.
    """
    del _context
    signature = types.void(
        lines, types.uint64, weight, types.uint64, types.uint64, narrowed, types.uint64
    )

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        index = ir.IntType(32)
        four, eight = (ir.VectorType(ir.FloatType(), n) for n in (4, 8))

        def place(kind: Any, array: Any, start: Any) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            return builder.gep(data, [start])

        def of_both(position: int, start: Any) -> list[Any]:
            kinds = signature.args[position]
            return [
                place(kinds[row], builder.extract_value(values[position], row), start)
                for row in (0, 1)
            ]

        def lanes(*numbers: int) -> Any:
            return ir.Constant(ir.VectorType(index, len(numbers)), list(numbers))

        pixels = of_both(0, values[1])
        weights, count = place(signature.args[2], values[2], values[3]), values[4]
        before = builder.block
        loop = builder.append_basic_block("taps")
        after = builder.append_basic_block("after_taps")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, *totals = (builder.phi(kind) for kind in (count.type, eight, eight))
        k.add_incoming(count.type(0), before)
        # Two pixels at a time, whose sums do not wait for each other.
        for number, total in enumerate(totals):
            total.add_incoming(eight(None), before)
            tap = builder.add(k, count.type(number))
            halves = []
            for row in pixels:
                pixel = builder.gep(row, [builder.mul(tap, count.type(3))])
                half = builder.load(builder.bitcast(pixel, four.as_pointer()))
                half.align = 4
                halves.append(half)
            both = builder.shuffle_vector(*halves, lanes(*range(8)))
            one = builder.load(builder.gep(weights, [tap]))
            one = builder.insert_element(eight(ir.Undefined), one, index(0))
            one = builder.shuffle_vector(one, eight(ir.Undefined), lanes(*[0] * 8))
            product = builder.fmul(one, both, flags=("contract",))
            total.add_incoming(builder.fadd(total, product, flags=("contract",)), loop)
        following = builder.add(k, count.type(2))
        k.add_incoming(following, loop)
        builder.cbranch(builder.icmp_unsigned("<", following, count), loop, after)
        builder.position_at_end(after)
        added = builder.fadd(*(total.incomings[1][0] for total in totals))
        for row, result in enumerate(of_both(5, values[6])):
            own = lanes(*range(4 * row, 4 * row + 4))
            half = builder.shuffle_vector(added, eight(ir.Undefined), own)
            store = builder.store(half, builder.bitcast(result, four.as_pointer()))
            store.align = 4
        return context.get_dummy_value()

    return signature, generate


@_compiled
def _narrow(rows: Any, columns: _Taps, lines: Any, narrowed: Any) -> None:
    """Two rows of a crop, uint8 [3 W], resized to [S, 4] in [0, 1]."""
    first, weight = columns
    size, count = weight.shape
    for number in range(2):
        row, line = rows[number], lines[number]
        for i in range(row.shape[0]):
            line[i] = _F(row[i]) * _LEVEL
        line[row.shape[0] :] = _ZERO
    flat = weight.reshape(size * count)
    for x in range(size):
        _weigh_pixels(
            lines,
            np.uint64(3 * first[x]),
            flat,
            np.uint64(x * count),
            np.uint64(count),
            narrowed,
            np.uint64(4 * x),
        )
    for number in range(2):
        result = narrowed[number]
        for x in range(4 * size):
            result[x] = _unit(result[x])


@_inlined
def _resize_antialiased_row(
    row: _Strip, y: int, image: Array, box: Array, work: Any
) -> None:
    """As `_resize_row`, as Pillow does it: along the rows, clipped, and then across.

    Rows come in order, so that each row of the crop is narrowed once and kept while it
    is needed.
    """
    rows, line, done = work.rows, work.line, work.done
    size, count = rows.weight.shape
    # The last one is for the sum.
    kept, x = work.kept[:-1], work.kept[-1]
    left, stop = 3 * box[1], 3 * (box[1] + box[3])
    start, half = rows.first[y], line.shape[0] // 2
    last = box[2] - 1
    while done[0] < start + count:
        number = done[0]
        top, bottom = box[0] + min(number, last), box[0] + min(number + 1, last)
        _narrow(
            (image[top, left:stop], image[bottom, left:stop]),
            work.columns,
            (line[:half], line[half:]),
            (kept[number % (count + 1)], kept[(number + 1) % (count + 1)]),
        )
        done[0] += 2
    for k in range(0, count, 2):
        one, two = kept[(start + k) % (count + 1)], kept[(start + k + 1) % (count + 1)]
        v, w = rows.weight[y, k], rows.weight[y, k + 1]
        if k:
            for i in range(4 * size):
                x[i] += v * one[i] + w * two[i]
        else:
            for i in range(4 * size):
                x[i] = v * one[i] + w * two[i]
    r, g, b = row
    for i in range(size):
        r[i], g[i], b[i] = x[4 * i], x[4 * i + 1], x[4 * i + 2]


@_inlined
def _resize_row(row: _Strip, y: int, origin: Any, work: Any) -> None:
    """Row y of a crop, resized, in [0, 1] except for bicubic overshoot."""
    image, box, _, _, antialias = origin
    if antialias:
        _resize_antialiased_row(row, y, image, box, work)
        return
    rows, columns, line = work.rows, work.columns, work.line
    r, g, b = row
    left, stop, bottom = 3 * box[1], 3 * (box[1] + box[3]), box[0] + box[2] - 1
    top = box[0] + rows.first[y]
    one = image[min(max(top, box[0]), bottom), left:stop]
    two = image[min(max(top + 1, box[0]), bottom), left:stop]
    three = image[min(max(top + 2, box[0]), bottom), left:stop]
    four = image[min(max(top + 3, box[0]), bottom), left:stop]
    v, w = rows.weight[0, y] * _LEVEL, rows.weight[1, y] * _LEVEL
    s, t = rows.weight[2, y] * _LEVEL, rows.weight[3, y] * _LEVEL
    inner = line[3 * _BORDER :]
    for i in range(stop - left):
        inner[i] = v * _F(one[i]) + w * _F(two[i]) + s * _F(three[i]) + t * _F(four[i])
    for x in range(r.shape[0]):
        # Unsigned, since Numba tests signed indices for counting from the end.
        start = np.uint64(3 * (columns.first[x] + _BORDER))
        v, w = columns.weight[0, x], columns.weight[1, x]
        s, t = columns.weight[2, x], columns.weight[3, x]
        r[x] = _weighed(line, start, v, w, s, t)
        g[x] = _weighed(line, start + np.uint64(1), v, w, s, t)
        b[x] = _weighed(line, start + np.uint64(2), v, w, s, t)


# Operations on a row ------------------------------------------------------------------


@_compiled
def _flip(x: Array, size: int, spare: Array) -> None:
    """Mirrors each row of `size`."""
    for start in range(0, x.shape[0], size):
        row = x[start : start + size]
        for i in range(size):
            spare[i] = row[i]
        for i in range(size):
            row[i] = spare[size - 1 - i]


@_compiled
def _brighten(x: Array, factor: Any, shift: Any) -> None:
    """Multiplies and adds."""
    for i in range(x.shape[0]):
        x[i] = _unit(x[i] * factor + shift)


@_compiled
def _contrast(x: Array, factor: Any, mean: Any) -> None:
    """Scales the distance to the plane's mean."""
    for i in range(x.shape[0]):
        x[i] = _unit((x[i] - mean) * factor + mean)


@_compiled
def _saturate(strip: _Strip, factor: Any) -> None:
    """Multiplies S of HSV, which stays within [0, 1].

    S is the chroma over the largest channel. That channel is unchanged, so the
    distances to it scale as S does.
    """
    r, g, b = strip
    for i in range(r.shape[0]):
        high = max(max(r[i], g[i]), b[i])
        chroma = high - min(min(r[i], g[i]), b[i])
        # Greys have chroma 0 and are unchanged by any scale; a pixel without a positive
        # channel is black after clipping.
        scale = min(factor, high / max(chroma, _F(_TINY)))
        r[i] = _unit(high - (high - r[i]) * scale)
        g[i] = _unit(high - (high - g[i]) * scale)
        b[i] = _unit(high - (high - b[i]) * scale)


@_compiled
def _turn(strip: _Strip, turns: Any) -> None:
    """Turns the hue by full circles, from -5/6 to 1.

    The smallest and the largest value stay the same, but change channels.
    """
    r, g, b = strip
    for i in range(r.shape[0]):
        high = max(max(r[i], g[i]), b[i])
        low = min(min(r[i], g[i]), b[i])
        chroma = high - low
        double, circle = _F(2) * chroma, _F(6) * chroma
        # In sixths of a circle (red 0, green 2, blue 4) times the chroma, which avoids
        # a division.
        hue = r[i] - g[i] + _F(4) * chroma
        hue = b[i] - r[i] + double if g[i] == high else hue
        hue = g[i] - b[i] if r[i] == high else hue
        hue += turns * circle
        hue = hue + circle if hue < _ZERO else hue
        hue = hue - circle if hue >= circle else hue
        red = abs(hue - _F(3) * chroma) - chroma
        green = double - abs(hue - double)
        blue = double - abs(hue - _F(4) * chroma)
        r[i] = _unit(low + min(max(red, _ZERO), chroma))
        g[i] = _unit(low + min(max(green, _ZERO), chroma))
        b[i] = _unit(low + min(max(blue, _ZERO), chroma))


@_compiled
def _grey(strip: _Strip) -> None:
    """Luma, into the red plane."""
    r, g, b = strip
    red, green, blue = _GRAY_WEIGHTS
    for i in range(r.shape[0]):
        r[i] = red * r[i] + green * g[i] + blue * b[i]


# Blur ---------------------------------------------------------------------------------


class _Blur(NamedTuple):
    """A Gaussian: float32 weights of the middle tap and of `radius` to either side."""

    weight: Array
    radius: int


@_compiled
def _gaussian(sigma: Any, largest: Any, weight: Array) -> _Blur:
    """The taps that sigma needs, scaled to sum 1, written to `weight` [S].

    `largest` must be below S, as it is for kernels no larger than the view.
    """
    # The smallest first: no integer holds the reach of an infinite sigma.
    reach = min(sigma * _F(BLUR_REACH), _F(largest), _F(weight.size - 1))
    radius = min(max(math.ceil(reach), 0), weight.size - 1)
    weight[0] = total = _ONE
    for k in range(1, radius + 1):
        weight[k] = np.exp(-_F(k * k) / (_F(2) * sigma * sigma))
        total += _F(2) * weight[k]
    for k in range(radius + 1):
        weight[k] /= total
    return _Blur(weight, radius)


@_inlined
def _add_pair(x: Array, w: Any, one: Array, two: Array) -> None:
    """Adds the two rows on either side of x, times their weight."""
    for i in range(x.shape[0]):
        x[i] += w * (one[i] + two[i])


@_inlined
def _add_pairs(
    x: Array, v: Any, one: Array, two: Array, w: Any, three: Array, four: Array
) -> None:
    """Adds two pairs at once, so that x is read and written once."""
    for i in range(x.shape[0]):
        x[i] += v * (one[i] + two[i]) + w * (three[i] + four[i])


@_compiled
def _blur_along(x: Array, blur: _Blur, spare: Array) -> None:
    """Blurs a row, with zeros beside it, after clipping bicubic overshoot."""
    weight, radius = blur
    size = x.shape[0]
    for i in range(radius):
        spare[i] = spare[radius + size + i] = _ZERO
    middle = spare[radius : radius + size]
    for i in range(size):
        middle[i] = _unit(x[i])
        x[i] = weight[0] * middle[i]
    for k in range(1, radius, 2):
        one, two = spare[radius - k :], spare[radius + k :]
        three, four = spare[radius - k - 1 :], spare[radius + k + 1 :]
        _add_pairs(x, weight[k], one, two, weight[k + 1], three, four)
    if radius % 2:
        _add_pair(x, weight[radius], spare, spare[2 * radius :])


@_compiled
def _blur_across(plane: Array, y: int, blur: _Blur, x: Array) -> None:
    """Row y of a plane blurred along its other axis, zeros above and below."""
    weight, radius = blur
    size = x.shape[0]
    middle, w = plane[y], weight[0]
    for i in range(size):
        x[i] = w * middle[i]
    both = min(radius, y, size - 1 - y)  # taps that lie inside on both sides
    for k in range(1, both, 2):
        one, two = plane[y - k], plane[y + k]
        three, four = plane[y - k - 1], plane[y + k + 1]
        _add_pairs(x, weight[k], one, two, weight[k + 1], three, four)
    if both % 2:
        _add_pair(x, weight[both], plane[y - both], plane[y + both])
    for k in range(both + 1, radius + 1):
        for other in (y - k, y + k):
            if 0 <= other < size:
                row, w = plane[other], weight[k]
                for i in range(size):
                    x[i] += w * row[i]


# Steps --------------------------------------------------------------------------------


class _Steps(NamedTuple):
    """The steps of one view.

    Attributes:
      what: int32 [n], of the steps above.
      how: float32 [n, 2], their factors; for blur sigma and the largest radius.
    """

    what: Array
    how: Array


@_compiled
def _steps(u: Array, program: Array, room: _Steps) -> _Steps:
    """The steps of a program with the draws [D] of a view, written to `room`."""
    what, how = room
    how[:] = _ZERO
    number = 0
    for line in program:
        own = u[int(line[1]) :]
        if own[0] >= line[2]:
            continue
        if line[0] == _JITTER:
            number = _jitter_steps(own, line, number, what, how)
            continue
        if line[0] == _FLIP:
            what[number] = _FLIP_ROW
        elif line[0] == _GRAYSCALE:
            what[number] = _GREY
        else:
            what[number] = _BLUR
            how[number, 0] = line[RANGES] + own[1] * line[RANGES + 1]
            how[number, 1] = line[NUMBER]
        number += 1
    return _Steps(what[:number], how[:number])


@_compiled
def _barrier(steps: _Steps, first: int) -> int:
    """The first step, from `first` on, that needs all rows; or the number of steps."""
    barrier = first
    while barrier < steps.what.size and _CONTRAST != steps.what[barrier] != _BLUR:
        barrier += 1
    return barrier


@_compiled
def _jitter_steps(own: Array, line: Array, number: int, what: Array, how: Array) -> int:
    """The four adjustments in the order of the draws 5 to 8; the number of steps."""
    done = 0
    for _ in range(4):
        adjustment = -1
        for k in range(4):
            first = adjustment < 0 or own[5 + k] < own[5 + adjustment]
            if not (done >> k) & 1 and first:
                adjustment = k
        done |= 1 << adjustment
        low, width = line[RANGES + 2 * adjustment], line[RANGES + 2 * adjustment + 1]
        what[number] = adjustment
        how[number, 0] = low + own[1 + adjustment] * width
        if adjustment == _BRIGHTEN and line[NUMBER] != _ZERO:
            how[number, 1] = how[number, 0]
            how[number, 0] = _ONE
        number += 1
    return number


@_inlined
def _adjust(
    strip: _Strip, what: int, how: Array, grey: bool, size: int, spare: Array
) -> bool:
    """One step on a strip; returns whether it is grey, so that only red counts."""
    channels = 1 if grey else 3
    if what == _FLIP_ROW:
        for c in range(channels):
            _flip(strip[c], size, spare)
    elif what == _BRIGHTEN:
        for c in range(channels):
            _brighten(strip[c], how[0], how[1])
    elif grey:
        # Saturation, hue and grey change greys only by clipping.
        _brighten(strip[0], _ONE, _ZERO)
    elif what == _SATURATE:
        _saturate(strip, how[0])
    elif what == _TURN:
        _turn(strip, how[0])
    else:
        _grey(strip)
        return True
    return grey


# Passes -------------------------------------------------------------------------------


class _Work(NamedTuple):
    """Working memory.

    Attributes:
      planes: float32 [2, 3, S S]; two, since blurring across needs the rows above
        unblurred.
      sums: float32 [3, _strip_rows(S) S], of a strip's pixels.
      means: float32 [3], of the planes.
      spare: float32 [3 S], for a row and the zeros on either side of it.
      rows: taps along height.
      columns: taps along width.
      weight: float32 [S], of a blur.
      steps: for the largest number of steps.
      line: float32 [3 (width + 2 _BORDER)], a row of the crop, its borders 0; twice
        as long for two rows of an antialiased crop.
      kept: float32 [taps along height + 2, 4 S], antialiased rows of the crop, and one
        for their sum; else [0, 4 S].
      done: int32 [1], how many rows were narrowed.
    """

    planes: Array
    sums: Array
    means: Array
    spare: Array
    rows: _Taps
    columns: _Taps
    weight: Array
    steps: _Steps
    line: Array
    kept: Array
    done: Array


_STRIP = 256  # numbers of a plane in a strip of short rows


@_compiled
def _strip_rows(size: int) -> int:
    """Rows of a strip: several where they are short, since each call has a cost."""
    return max(_STRIP // size, 1)


@_compiled
def memory_size(size: int, longest: int) -> int:
    """Numbers in `memory` for views of `size` and crops of sides up to `longest`."""
    taps = max(_num_taps(longest, size), 4)
    # Sums, spare, both axes' taps, weight, rows that are kept.
    rows = 3 * _strip_rows(size) + 3 + 2 * (1 + taps) + 1 + 4 * (taps + 2)
    of_view = (6 * size + rows) * size + 3 + 3 * _MOST_STEPS + 1
    return of_view + 6 * (longest + 2 * _BORDER)


@_compiled
def _divided(
    memory: Array, size: int, height: int, width: int, antialias: bool
) -> _Work:
    """The parts of `memory` [memory_size(size, at least height and width)].

    Slices of one array, since Numba would count references to separate arrays with
    each row.
    """
    planes, memory = memory[: 6 * size * size], memory[6 * size * size :]
    strips = 3 * _strip_rows(size) * size
    sums, memory = memory[:strips], memory[strips:]
    means, memory = memory[:3], memory[3:]
    spare, memory = memory[: 3 * size], memory[3 * size :]
    first, memory = memory[: 2 * size].view(np.int32), memory[2 * size :]
    # Of rows and columns, four or as many as antialiasing needs.
    across, along, kept_rows, lines = (4, size), (4, size), 0, 1
    if antialias:
        across, along = (size, _num_taps(height, size)), (size, _num_taps(width, size))
        kept_rows, lines = across[1] + 2, 2
    count = across[0] * across[1]
    rows, memory = memory[:count].reshape(across), memory[count:]
    count = along[0] * along[1]
    columns, memory = memory[:count].reshape(along), memory[count:]
    weight, memory = memory[:size], memory[size:]
    what, memory = memory[:_MOST_STEPS].view(np.int32), memory[_MOST_STEPS:]
    how, memory = memory[: 2 * _MOST_STEPS], memory[2 * _MOST_STEPS :]
    count = 4 * size * kept_rows
    kept, memory = memory[:count].reshape((kept_rows, 4 * size)), memory[count:]
    done, line = memory[:1].view(np.int32), memory[1:]
    done[0] = 0
    line = line[: lines * 3 * (width + 2 * _BORDER)]
    line[: 3 * _BORDER] = line[-3 * _BORDER :] = _ZERO
    return _Work(
        planes.reshape((2, 3, size * size)),
        sums.reshape((3, strips // 3)),
        means,
        spare,
        _Taps(first[:size], rows),
        _Taps(first[size:], columns),
        weight,
        _Steps(what, how.reshape((_MOST_STEPS, 2))),
        line,
        kept,
        done,
    )


@_compiled
def _take_unfinished(unfinished: Array, strip: _Strip) -> None:
    """A strip of an interleaved view."""
    r, g, b = strip
    for x in range(r.shape[0]):
        r[x], g[x], b[x] = (
            unfinished[3 * x],
            unfinished[3 * x + 1],
            unfinished[3 * x + 2],
        )


@_compiled
def _add(x: Array, sums: Array) -> None:
    """Adds a plane's strip to sums, pixel by pixel."""
    for i in range(x.shape[0]):
        sums[i] += x[i]


@_compiled
def _store_levels(strip: _Strip, to: Array) -> None:
    """A strip, interleaved, to the nearest of 256 levels."""
    r, g, b = strip
    for x in range(r.shape[0]):
        to[3 * x] = np.uint8(np.rint(_unit(r[x]) * _F(255)))
        to[3 * x + 1] = np.uint8(np.rint(_unit(g[x]) * _F(255)))
        to[3 * x + 2] = np.uint8(np.rint(_unit(b[x]) * _F(255)))


@_compiled
def _store_floats(strip: _Strip, to: Array) -> None:
    """A strip, interleaved, unchanged."""
    r, g, b = strip
    for x in range(r.shape[0]):
        to[3 * x], to[3 * x + 1], to[3 * x + 2] = r[x], g[x], b[x]


class _Origin(NamedTuple):
    """The input of a view and its size; see `_make_view`."""

    image: Array
    box: Array
    unfinished: Array
    size: int
    antialias: bool


class _Pass(NamedTuple):
    """One pass over all rows.

    Attributes:
      source: where rows come from: `_RESIZED`, `_AS_THEY_ARE`, or the barrier of the
        pass before, which has its second half in this one.
      target: the barrier of this pass, `_CONTRAST` or `_BLUR`, or `_END`.
      factor: of contrast, if it is the source.
      blur: if it is the source or the target; a view has only one.
    """

    source: int
    target: int
    factor: Any
    blur: _Blur


@_inlined
def _take(
    strip: _Strip,
    y: int,
    way: _Pass,
    origin: _Origin,
    work: _Work,
    at: int,
    channels: int,
) -> None:
    """Fills a strip from its source.

    Args:
      strip: the result.
      y: its first row.
      way: the pass.
      origin: the source of the first pass.
      work: memory.
      at: which of the two planes the previous pass wrote.
      channels: 1 if they are grey, else 3.
    """
    size = origin.size
    r, g, b = strip
    if way.source == _RESIZED:
        for start in range(0, r.size, size):
            stop = start + size
            row = (r[start:stop], g[start:stop], b[start:stop])
            _resize_row(row, y + start // size, origin, work)
    elif way.source == _AS_THEY_ARE:
        _take_unfinished(origin.unfinished[3 * y * size :], strip)
    elif way.source == _CONTRAST:
        for c in range(channels):
            _contrast(strip[c], way.factor, work.means[c])
    else:
        for c in range(channels):
            plane = work.planes[at, c].reshape((size, size))
            for start in range(0, r.size, size):
                to = strip[c][start : start + size]
                _blur_across(plane, y + start // size, way.blur, to)


@_inlined
def _leave(
    strip: _Strip, grey: bool, way: _Pass, work: _Work, pixels: Array, floats: Array
) -> None:
    """Writes a strip to its target; one of `pixels` and `floats` has size 0."""
    r, g, b = strip
    channels = 1 if grey else 3
    if way.target == _CONTRAST:
        for c in range(channels):
            _add(strip[c], work.sums[c])
    elif way.target == _BLUR:
        size = work.weight.size
        for c in range(channels):
            for start in range(0, r.size, size):
                _blur_along(strip[c][start : start + size], way.blur, work.spare)
    else:
        if grey:
            # Copies, since aliased planes would make the next loop slow.
            for x in range(r.size):
                g[x] = b[x] = r[x]
        if pixels.size:
            _store_levels(strip, pixels)
        else:
            _store_floats(strip, floats)


@_compiled
def _make_view(
    image: Array,
    box: Array,
    unfinished: Array,
    u: Array,
    program: Array,
    size: int,
    antialias: bool,
    pixels: Array,
    floats: Array,
    memory: Array,
) -> None:
    """Computes one view.

    Args:
      image: uint8 [H, 3 W], from which the box is cut and resized.
      box: int32 (y, x, height, width) within it.
      unfinished: float32 [S S 3], a view that earlier operations returned, used in
        place of the image; or of size 0.
      u: float32 [D], the draws.
      program: float32 [lines, PROGRAM_WIDTH].
      size: S.
      antialias: whether a crop is resized as by Pillow instead of TensorFlow.
      pixels: uint8 [S S 3], the result in 256 levels, or of size 0.
      floats: float32 [S S 3], the result without rounding, or of size 0.
      memory: float32 [memory_size(S, at least H and W)], working memory.
    """
    work = _divided(memory, size, box[2], box[3], antialias)
    _set_taps(work.rows, box[2], antialias)
    _set_taps(work.columns, box[3], antialias)
    origin = _Origin(image, box, unfinished, size, antialias)
    steps = _steps(u, program, work.steps)
    first, last, source = 0, steps.what.size, _RESIZED
    if unfinished.size:
        source = _AS_THEY_ARE
    elif last and steps.what[0] == _FLIP_ROW:
        first = 1
        _mirror(work.columns, antialias)  # free, unlike mirroring pixels
    at, grey, step_rows = 0, False, _strip_rows(size)
    factor, blur = _ONE, _Blur(work.weight, 0)
    while source != _END:
        barrier = _barrier(steps, first)
        target = steps.what[barrier] if barrier < last else _END
        if target == _BLUR:
            sigma, largest = steps.how[barrier]
            blur = _gaussian(sigma, largest, work.weight)
        elif target == _CONTRAST:
            work.sums[:] = _ZERO
        way = _Pass(source, target, factor, blur)
        to = 1 - at if source == _BLUR else at
        # Strips that are written to the output at once are not kept.
        kept = target != _END or source == _CONTRAST
        channels = 1 if grey else 3
        planes = work.planes[to]
        for y in range(0, size, step_rows):
            length = min(step_rows, size - y) * size
            start = y * size if kept else 0
            strip = (
                planes[0, start : start + length],
                planes[1, start : start + length],
                planes[2, start : start + length],
            )
            _take(strip, y, way, origin, work, at, channels)
            grey = channels == 1
            for step in range(first, barrier):
                grey = _adjust(
                    strip, steps.what[step], steps.how[step], grey, size, work.spare
                )
            out = 3 * y * size
            _leave(strip, grey, way, work, pixels[out:], floats[out:])
        if target == _CONTRAST:
            factor = steps.how[barrier, 0]
            for c in range(3):
                work.means[c] = work.sums[c].sum() / _F(size * size)
        first, source, at = barrier + 1, target, to


# Why `make_views` refuses its arguments.
PROBLEMS = (
    b"images, boxes, draws and program do not match",
    b"a box does not lie within its image",
)
_NO_MATCH, _OUTSIDE = range(len(PROBLEMS))
_NONE = -1


@_compiled
def _problem(
    images: Array, boxes: Array, unfinished: Array, draws: Array, program: Array
) -> int:
    """The number of the problem with the arguments of `make_views`, or -1.

    Nothing checks sizes after this. Boxes are ignored with `unfinished`.
    """
    number = boxes.shape[0]
    if unfinished.shape[0] not in (0, number) or program.shape[0] > len(OPERATIONS):
        return _NO_MATCH
    for line in program:
        if not 0 <= line[0] < len(OPERATIONS) or line[1] < 0 or line[NUMBER] < 0:
            return _NO_MATCH
        needed = int(line[1]) + _COUNTS[int(line[0])]
        if draws.shape[0] != number or draws.shape[1] < needed:
            return _NO_MATCH
    if unfinished.shape[0] or not number:
        return _NONE
    if not images.shape[0] or number % images.shape[0]:
        return _NO_MATCH
    for n in range(number):
        y, x, height, width = boxes[n]
        if (
            min(y, x) < 0
            or min(height, width) < 1
            or y + height > images.shape[1]
            or 3 * (x + width) > images.shape[2]
        ):
            return _OUTSIDE
    return _NONE


@_compiled
def make_views(
    images: Array,
    boxes: Array,
    unfinished: Array,
    draws: Array,
    program: Array,
    size: int,
    antialias: bool,
    pixels: Array,
    floats: Array,
    memory: Array,
) -> int:
    """Computes N views of n images; see `_make_view`.

    Args:
      images: uint8 [n, H, 3 W]; each has N / n views.
      boxes: int32 [N, 4].
      unfinished: float32 [N, S S 3], or [0, S S 3].
      draws: float32 [N, D].
      program: float32 [lines, PROGRAM_WIDTH].
      size: S.
      antialias: whether crops are resized as by Pillow instead of TensorFlow.
      pixels: uint8 [N, S S 3], or [N, 0].
      floats: float32 [N, S S 3], or [N, 0].
      memory: float32 [memory_size(S, at least H and W)].

    Returns:
      The number of one of `PROBLEMS`, and nothing was computed, or -1.
    """
    problem = _problem(images, boxes, unfinished, draws, program)
    if problem != _NONE:
        return problem
    number = boxes.shape[0]
    no_view = memory[:0]
    for n in range(number):
        _make_view(
            images[0 if unfinished.shape[0] else n * images.shape[0] // number],
            boxes[n],
            unfinished[n] if unfinished.shape[0] else no_view,
            draws[n],
            program,
            size,
            antialias and not unfinished.shape[0],  # whose boxes are ignored
            pixels[n],
            floats[n],
            memory,
        )
    return _NONE
