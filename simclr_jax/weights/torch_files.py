"""PyTorch's weight files, read without PyTorch and without running what is in them.

A `.pth` file is a pickle, which can call anything. Here it can only call what builds
tensors; other names in it become inert placeholders, and what they would have built is
left out. Both formats are read: the zip archive of PyTorch 1.6 and the one before.
"""

import collections
import functools
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import load_file

from simclr_jax.errors import DataError, first_line
from simclr_jax.weights.imported import Tensors

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_ZIP_START, _PICKLE_START = b"PK\x03\x04", b"\x80"
# Tensors may repeat numbers of their storage, but not to fill the memory.
_SMALL, _MAX_EXPANSION = 1000, 1000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Keys under which training scripts keep the weights in a checkpoint.
_INNER = ("state_dict", "model", "model_state_dict", "net", "teacher", "student")
# What damaged files make the readers raise.
_DAMAGES = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    MemoryError,
    OverflowError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RecursionError,
    safetensors.SafetensorError,
)


def is_torch_file(path: str) -> bool:
    """Whether a local file is in one of the formats read here."""
    if path.endswith(".safetensors"):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError:
        return False
    return start == _ZIP_START or start[:1] == _PICKLE_START


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors` or `.pth` file by name, as PyTorch orders them.

    Raises:
      DataError: the file cannot be read, or holds no tensors, or several models.
    """
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        with open(path, "rb") as file:
            zipped = file.read(4) == _ZIP_START
        return _read_zip(path) if zipped else _read_legacy(path)
    except DataError:
        raise
    except _DAMAGES as error:
        raise DataError(f"file {path}: cannot be read ({first_line(error)})") from error


def _state_dict(path: str, loaded: Any) -> dict[str, np.ndarray]:
    """The one dict of tensors in what a file holds; only these are put together."""

    def tensors(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            return {}
        return {str(k): v for k, v in value.items() if isinstance(v, _Lazy)}

    inner = loaded if isinstance(loaded, Mapping) else {}
    candidates = [key for key in _INNER if tensors(inner.get(key))]
    found = tensors(inner[candidates[0]] if candidates else loaded)
    if found and len(candidates) <= 1:
        return {name: lazy.array() for name, lazy in found.items()}
    keys = ", ".join(map(str, list(inner)[:8])) or "none"
    raise DataError(
        f"file {path}: must hold tensors by name, or one of the keys "
        f"{', '.join(_INNER)} with them, and only one; its keys are {keys}"
    )


# What a pickle may call, and what stands in for the rest.


class _Placeholder:
    """Takes the place of an object that is not a tensor; never does anything."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes any arguments."""

    def __setstate__(self, _: Any) -> None:
        pass

    # Pickles fill lists and dicts, and what is made like them, through these.
    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class _Storage:
    """A run of numbers that tensors are cut from."""

    def __init__(self, numbers: Callable[[], np.ndarray]) -> None:
        """Takes what gives the numbers, once the file has come to them."""
        self.numbers = numbers


class _Lazy:
    """A tensor whose storage may come later in the file."""

    def __init__(
        self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any
    ) -> None:
        """Takes the arguments of PyTorch's `_rebuild_tensor`."""
        self._arguments = (storage, int(offset), tuple(size), tuple(stride))

    def __setstate__(self, _: Any) -> None:
        pass

    def array(self) -> np.ndarray:
        storage, offset, size, stride = self._arguments
        numbers = storage.numbers()
        if math.prod(size) > max(len(numbers), _SMALL) * _MAX_EXPANSION:
            raise ValueError("a tensor is far larger than its storage")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        inside = min(offset, *size, *stride, 0) >= 0
        if inside and 0 in size:
            return np.zeros(size, numbers.dtype)
        if not inside or last >= len(numbers):
            raise ValueError("a tensor lies outside its storage")
        return np.lib.stride_tricks.as_strided(
            numbers[offset:], size, [s * numbers.itemsize for s in stride]
        ).copy()


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    """Builds tensors, containers and placeholders, and nothing else."""

    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor"): _Lazy,
        ("torch._utils", "_rebuild_tensor_v2"): _Lazy,
        ("torch._utils", "_rebuild_parameter"): _parameter,
    }

    def __init__(self, file: Any, storage: Callable[[tuple], _Storage]) -> None:
        """Takes the file and what makes a storage of a persistent id."""
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for."""
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return name
        return self._ALLOWED.get((module, name), _Placeholder)

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage; ids are ('storage', type, key, ...)."""
        if not isinstance(pid, tuple) or len(pid) < 3 or pid[0] != "storage":
            raise pickle.UnpicklingError("unknown persistent id")
        return self._storage(pid)


def _dtype(kind: Any) -> np.dtype:
    if kind not in _DTYPES:
        raise ValueError("numbers of a type that is not supported")
    return np.dtype(_DTYPES[kind])


def _read_zip(path: str) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("not a file of torch.save")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("numbers in big-endian order")

        @functools.cache
        def numbers(key: str, kind: str) -> np.ndarray:
            member = archive.getinfo(f"{root}data/{key}")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("numbers are compressed, which torch.save never does")
            return np.frombuffer(archive.read(member), _dtype(kind))

        def storage(pid: tuple) -> _Storage:
            return _Storage(lambda: numbers(pid[2], pid[1]))

        content = io.BytesIO(archive.read(pickles[0]))
        return _state_dict(path, _Unpickler(content, storage).load())


def _read_legacy(path: str) -> dict[str, np.ndarray]:
    storages: dict[str, np.ndarray] = {}
    types: dict[str, Any] = {}

    def storage(pid: tuple) -> _Storage:
        _, kind, key, _, _, view = (*pid, None)[:6]
        if view is not None:
            raise ValueError("a storage that is a view of another")
        types[key] = _dtype(kind)
        return _Storage(lambda: storages[key])

    with open(path, "rb") as file:

        def load() -> Any:
            return _Unpickler(file, storage).load()

        if load() != _LEGACY_MAGIC:
            raise ValueError("not a file of torch.save")
        load()  # the format's version
        if not load().get("little_endian", True):
            raise ValueError("numbers in big-endian order")
        loaded = load()
        for key in load():
            dtype = types[key]
            count = int.from_bytes(file.read(8), "little")
            content = file.read(count * dtype.itemsize)
            if len(content) != count * dtype.itemsize:
                raise EOFError("the file ends early")
            storages[key] = np.frombuffer(content, dtype)
        return _state_dict(path, loaded)


def as_tensors(path: str, state_dict: Mapping[str, np.ndarray]) -> Tensors:
    """Kernels in this package's order: [height, width, in, out] and [in, out]."""

    def order(ndim: int) -> tuple[int, ...]:
        return {4: (2, 3, 1, 0), 2: (1, 0)}.get(ndim, tuple(range(ndim)))

    shapes = {
        name: tuple(array.shape[i] for i in order(array.ndim))
        for name, array in state_dict.items()
    }

    def read(name: str) -> np.ndarray:
        array = state_dict[name]
        return array.transpose(order(array.ndim))

    return Tensors(path, shapes, read)
