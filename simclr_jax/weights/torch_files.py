"""PyTorch's weight files, read without PyTorch and without running what is in them.

A `.pth` file is a zip archive (since PyTorch 1.6) with a pickle, and a pickle can call
anything. Here it can only call what builds tensors; other names in it become inert
placeholders, and the objects that they would have built are left out.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from simclr_jax.errors import DataError, InvalidInput, first_line
from simclr_jax.weights.named_tensors import Tensors

_DTYPES: dict[str, Any] = {
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
# A tensor may repeat values of its storage, but must not exhaust the memory.
_SMALL, _MAX_EXPANSION = 1000, 1000
_MOST_NESTED = 10  # dicts inside each other; VISSL has five
# Keys under which training scripts keep the weights in a checkpoint.
_INNER = ("state_dict", "model", "model_state_dict", "net", "teacher", "student")


def is_torch_file(path: str) -> bool:
    """Whether a local file was written by PyTorch or safetensors."""
    if path.endswith(".safetensors"):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError:
        return False
    return start == _ZIP_START or start[:1] == _PICKLE_START


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
      keys: at the top.
      groups: dotted key of a dict, '' for the top -> the tensors in it by name, which
        have a `shape`; `array_of` reads them.
    """

    keys: tuple[str, ...]
    groups: dict[str, dict[str, Any]]


@contextlib.contextmanager
def opened(path: str) -> Iterator[Contents]:
    """The tensors of a `.safetensors` or `.pth` file, as long as it is open.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        if path.endswith(".safetensors"):
            tensors = load_file(path)
            yield Contents(tuple(tensors), {"": tensors})
            return
        with open(path, "rb") as file:
            if file.read(1) == _PICKLE_START:
                raise DataError(
                    f"file {path}: is not in the zip format of PyTorch 1.6 and later; "
                    "convert it in PyTorch: weights = torch.load(file), then "
                    "torch.save(weights, new_file)"
                )
        with zipfile.ZipFile(path) as archive:
            yield _contents(_unpickled(archive))
    except InvalidInput:
        raise
    except Exception as error:  # the readers raise anything on damaged files
        raise DataError(f"file {path}: cannot be read ({first_line(error)})") from error


def array_of(tensor: Any) -> np.ndarray:
    """The values of a tensor in `Contents`."""
    return tensor.array() if isinstance(tensor, _Lazy) else tensor


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """The tensors of a file that holds one dict of them, as PyTorch orders them.

    Raises:
      DataError: the file cannot be read, or does not hold the tensors of one model.
    """
    with opened(path) as contents:
        groups = contents.groups
        keys = [key for key in _INNER if key in groups] or [k for k in groups if not k]
        if len(keys) == 1:
            return {name: array_of(t) for name, t in groups[keys[0]].items()}
        raise DataError(
            f"file {path}: must hold tensors by name, or one of the keys "
            f"{', '.join(_INNER)} with them, and only one; its keys are "
            f"{', '.join(contents.keys[:8]) or 'none'}"
        )


def _contents(content: Any) -> Contents:
    """All dicts of tensors in what a file holds."""
    if not isinstance(content, Mapping):
        return Contents((), {})
    groups: dict[str, dict[str, Any]] = {}
    # A dict may hold itself, or another one many times.
    seen, pending = {id(content)}, [("", content, 0)]
    for key, value, depth in pending:
        if tensors := {str(k): v for k, v in value.items() if isinstance(v, _Lazy)}:
            groups[key] = tensors
        for name, inner in value.items():
            is_new = isinstance(inner, Mapping) and id(inner) not in seen
            if is_new and depth < _MOST_NESTED:
                seen.add(id(inner))
                inner_key = f"{key}.{name}" if key else str(name)
                pending.append((inner_key, inner, depth + 1))
    return Contents(tuple(map(str, content)), groups)


class _Placeholder:
    """Stands for an object that is not a tensor; does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes any arguments."""

    def __setstate__(self, _: Any) -> None:
        pass

    # Unpickling fills lists, dicts and their subclasses through these methods.
    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class _Storage:
    """A flat array that tensors are views of, read when it is needed."""

    def __init__(self, numbers: Callable[[], np.ndarray]) -> None:
        """Takes the function that reads the array."""
        self.numbers = numbers


class _Lazy:
    """A tensor whose storage is not read yet."""

    def __init__(
        self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any
    ) -> None:
        """Takes the arguments of PyTorch's `_rebuild_tensor`."""
        self._arguments = (storage, int(offset), tuple(size), tuple(stride))

    def __setstate__(self, _: Any) -> None:
        pass

    @property
    def shape(self) -> tuple[int, ...]:
        """As the file says."""
        return self._arguments[2]

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


def _ordered(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    return collections.OrderedDict((k, v) for k, v in pairs if isinstance(k, _KEYS))


# Keys of other types are left out with their values: the hash of a tuple of tuples can
# take forever.
_KEYS = (str, int, float, bytes)


_PythonUnpickler: Any = pickle._Unpickler  # whose attributes are not typed


class _Unpickler(_PythonUnpickler):
    """Builds tensors, containers and placeholders, and nothing else.

    Python's own implementation: the one in C takes the memory for as many objects as a
    number in the file says.
    """

    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): _ordered,
        ("torch._utils", "_rebuild_tensor"): _Lazy,
        ("torch._utils", "_rebuild_tensor_v2"): _Lazy,
        ("torch._utils", "_rebuild_parameter"): _parameter,
    }

    def __init__(self, file: Any, storage: Callable[[tuple], _Storage]) -> None:
        """Takes the file and the function from a persistent id to a storage."""
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """The object for a name in the file."""
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return name
        return self._ALLOWED.get((module, name), _Placeholder)

    def load_setitem(self) -> None:
        """One item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        """Several items of a dict."""
        self._set(self.pop_mark())

    def load_set(self) -> None:
        """Members of a set, which no weights need."""
        self.pop_mark()

    def load_frozenset(self) -> None:
        """A whole one."""
        self.pop_mark()
        self.append(_Placeholder())

    def load_bytearray(self) -> None:
        """Bytes that can be changed, of any size that the file says."""
        raise pickle.UnpicklingError("byte arrays, which torch.save never writes")

    def _set(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, _KEYS):
                self.stack[-1][key] = value

    dispatch: Mapping[int, Any] = {
        **_PythonUnpickler.dispatch,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_set,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray,
    }

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage; ids are ('storage', type, key, ...)."""
        if not isinstance(pid, tuple) or len(pid) < 3 or pid[0] != "storage":
            raise pickle.UnpicklingError("unknown persistent id")
        return self._storage(pid)


def _dtype(kind: Any) -> np.dtype:
    if kind not in _DTYPES:
        raise ValueError("numbers of a type that is not supported")
    return np.dtype(_DTYPES[kind])


def _unpickled(archive: zipfile.ZipFile) -> Any:
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

    return _Unpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def as_tensors(path: str, state_dict: Mapping[str, np.ndarray]) -> Tensors:
    """Tensors with kernels as [height, width, in, out] and [in, out]."""

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
