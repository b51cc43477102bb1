"""Writes files as `torch.save` does, without PyTorch."""

import io
import pickle
import zipfile
from typing import ClassVar

import numpy as np

_KINDS = {"float32": "FloatStorage", "int64": "LongStorage", "float16": "HalfStorage"}


class _Global:
    """A name in a module that is not installed."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self, *_):
        raise AssertionError("is only pickled")


class _Storage:
    def __init__(self, kind, key, size):
        self.id = ("storage", _Global("torch", kind), key, "cpu", size)


class _Tensor:
    def __init__(self, storage, array):
        strides = tuple(s // array.itemsize for s in array.strides)
        self._arguments = (storage, 0, array.shape, strides, False, {})

    def __reduce__(self):
        return _Global("torch._utils", "_rebuild_tensor_v2"), self._arguments


class _Pickler(pickle._Pickler):
    def persistent_id(self, obj):
        return obj.id if isinstance(obj, _Storage) else None

    def _save_global(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    dispatch: ClassVar = {**pickle._Pickler.dispatch, _Global: _save_global}


def save(content, path):
    """Writes nested dicts whose arrays become tensors."""
    storages = []

    def converted(value):
        if isinstance(value, dict):
            return {key: converted(inner) for key, inner in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        array = np.ascontiguousarray(value).reshape(value.shape)
        storages.append(array)
        kind = _KINDS[array.dtype.name]
        return _Tensor(_Storage(kind, str(len(storages) - 1), array.size), array)

    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(converted(content))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", "little")
        for i, array in enumerate(storages):
            archive.writestr(f"archive/data/{i}", array.tobytes())
    return str(path)
