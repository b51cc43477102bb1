"""The compiled views of a composition, called on NumPy arrays.

`host_kernels.py` computes views by a program: a table with a line for each operation.
`compiled.py` runs the same programs inside TensorFlow.
"""

from collections.abc import Callable, Sequence

import numpy as np

from simclr_jax.data.sampling import draws
from simclr_jax.data.views import host_kernels
from simclr_jax.data.views.composition import Composition

# (images uint8 [n, H, W, 3], boxes int32 [n, V, 4], draws float32 [n, V, D],
# result uint8 [n, V, S, S, 3], which is written)
Views = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def program(composition: Composition, names: Sequence[str]) -> np.ndarray:
    """Operations as the table that `host_kernels` reads: [lines, PROGRAM_WIDTH]."""
    table = np.zeros((len(names), host_kernels.PROGRAM_WIDTH), np.float32)
    for line, name in zip(table, names, strict=True):
        before = composition.operations[: composition.operations.index(name)]
        settings = dict(composition.settings[name])
        ranges: Sequence[tuple[float, float]] = ()
        number = 0.0
        probability = settings.pop("probability")
        if name == "color_jitter":
            ranges = draws.jitter_ranges(**settings)
            number = float(settings["brightness_mode"] == "additive")
        elif name == "blur":
            ranges = ((settings["sigma_min"], settings["sigma_max"]),)
            fraction = np.float32(settings["kernel_fraction"])
            number = int(np.float32(composition.image_size) * fraction) // 2
        filled = np.ravel([(low, high - low) for low, high in ranges])
        line[0] = host_kernels.OPERATIONS.index(name)
        line[1:3] = draws.count(before), probability
        line[host_kernels.RANGES : host_kernels.RANGES + len(filled)] = filled
        line[host_kernels.NUMBER] = number
    return table


def not_compiled(composition: Composition) -> list[str]:
    """The operations of a composition that `host_kernels` does not have."""
    compiled = ("crop", *host_kernels.OPERATIONS)
    return [name for name in composition.operations if name not in compiled]


def compose(composition: Composition) -> Views:
    """The views of a composition all of whose operations are compiled.

    The function may run in many threads: it does not hold Python's lock. It raises
    ValueError with one of `host_kernels.PROBLEMS`.
    """
    names = [name for name in composition.operations if name != "crop"]
    table = program(composition, names)
    size = composition.image_size
    no_views = np.zeros((0, size * size * 3), np.float32)

    def views(
        images: np.ndarray, boxes: np.ndarray, uniform: np.ndarray, result: np.ndarray
    ) -> None:
        height, width = images.shape[1:3]
        number = boxes.shape[0] * boxes.shape[1]
        memory = np.empty(
            host_kernels.memory_size(size, max(height, width)), np.float32
        )
        problem = host_kernels.make_views(
            np.ascontiguousarray(images).reshape(len(images), height, width * 3),
            np.ascontiguousarray(boxes).reshape(number, 4),
            no_views,
            np.ascontiguousarray(uniform).reshape(number, uniform.shape[-1]),
            table,
            size,
            composition.antialias,
            result.reshape(number, size * size * 3),
            np.empty((number, 0), np.float32),
            memory,
        )
        if problem >= 0:
            raise ValueError(host_kernels.PROBLEMS[problem].decode())

    return views


def warm_up() -> None:
    """Compiles the kernels, or loads them from Numba's cache."""
    views = compose(Composition((), {}, 1))
    views(
        np.zeros((1, 1, 1, 3), np.uint8),
        np.array([[[0, 0, 1, 1]]], np.int32),
        np.zeros((1, 1, 0), np.float32),
        np.empty((1, 1, 1, 1, 3), np.uint8),
    )
