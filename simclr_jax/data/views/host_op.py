"""The kernels as a TensorFlow operation, which runs without Python.

TensorFlow has a C interface for operations and their kernels, and Numba compiles C
functions, so there is no build step, and no thread waits for Python's lock.
"""

import ctypes
import functools
import pathlib
import threading
from typing import Any

import numba
import numpy as np

from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import host_kernels

_NAME = b"SimclrViews"
_INPUTS = (
    b"image: uint8",
    b"boxes: int32",
    b"unfinished: float",
    b"draws: float",
    b"program: float",
    b"settings: int32",  # size of a view, which output is wanted, whether antialiased
)
_OUTPUTS = (b"pixels: uint8", b"floats: float")
_PIXELS, _FLOATS = range(len(_OUTPUTS))
_DTYPES = (tf.uint8, tf.float32)

# TensorFlow's C interface (tensorflow/c/kernels.h, ops.h, tf_tensor.h) ----------------

_flags = tf.sysconfig.get_link_flags()
_link = next(flag for flag in _flags if flag.startswith("-l")).removeprefix("-l")
# Linux's flag has a colon and a file's name; macOS's stands for `lib{name}.dylib`.
_file = _link[1:] if _link.startswith(":") else f"lib{_link}.dylib"
_library = ctypes.CDLL(str(pathlib.Path(tf.sysconfig.get_lib()) / _file))
_INT, _INT64, _TEXT = ctypes.c_int, ctypes.c_int64, ctypes.c_char_p
_HANDLE = ctypes.c_size_t  # an opaque pointer
_ADDRESS = ctypes.c_void_p


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = _library[name]
    function.restype, function.argtypes = result, arguments
    return function


_new_status = _function("TF_NewStatus", _HANDLE)
_get_code = _function("TF_GetCode", _INT, _HANDLE)
_get_message = _function("TF_Message", _TEXT, _HANDLE)
_set_status = _function("TF_SetStatus", None, _HANDLE, _INT, _HANDLE)
_delete_status = _function("TF_DeleteStatus", None, _HANDLE)
_fail = _function("TF_OpKernelContext_Failure", None, _HANDLE, _HANDLE)
_get_input = _function("TF_GetInput", None, _HANDLE, _INT, _ADDRESS, _HANDLE)
_num_dims = _function("TF_NumDims", _INT, _HANDLE)
_dim = _function("TF_Dim", _INT64, _HANDLE, _INT)
_count = _function("TF_TensorElementCount", _INT64, _HANDLE)
_bytes_at = _function("TF_TensorData", ctypes.POINTER(ctypes.c_uint8), _HANDLE)
_ints_at = _function("TF_TensorData", ctypes.POINTER(ctypes.c_int32), _HANDLE)
_floats_at = _function("TF_TensorData", ctypes.POINTER(ctypes.c_float), _HANDLE)
_delete_tensor = _function("TF_DeleteTensor", None, _HANDLE)
# Arguments: context, output, dtype, dims and their number, bytes (ignored), status.
_allocate_output = _function(
    "TF_AllocateOutput", _HANDLE, _HANDLE, _INT, _INT, _ADDRESS, _INT, _HANDLE, _HANDLE
)
# Arguments: context, dtype, dims and their number, attributes, status.
_allocate_temp = _function(
    "TF_AllocateTemp", _HANDLE, _HANDLE, _INT, _ADDRESS, _INT, _HANDLE, _HANDLE
)


class _Attributes(ctypes.Structure):
    """TF_AllocatorAttributes."""

    _fields_ = (("struct_size", ctypes.c_size_t), ("on_host", ctypes.c_ubyte))


_attributes = _Attributes(9, 1)  # its size as TensorFlow counts it: without padding
_on_host = ctypes.addressof(_attributes)
_UINT8, _FLOAT = (dtype.as_datatype_enum for dtype in _DTYPES)
_INVALID_ARGUMENT = 3  # a status's code
_messages = [ctypes.create_string_buffer(text) for text in host_kernels.PROBLEMS]
_problems = np.array([ctypes.addressof(message) for message in _messages], np.uintp)


# The kernel ---------------------------------------------------------------------------


def _compute(_: int, context: int) -> None:
    """Gets the inputs, allocates the output, computes, and reports failures."""
    status = _new_status()
    handles = np.empty(6, np.uintp)
    for number in range(6):
        _get_input(context, number, handles[number:].ctypes, status)
    image, boxes, unfinished, draws, program, settings = handles
    size, output, antialias = numba.carray(_ints_at(settings), 3).astype(np.int64)
    height = _dim(image, _num_dims(image) - 3)
    width = _dim(image, _num_dims(image) - 2)
    num_draws = _dim(draws, _num_dims(draws) - 1)
    images = _count(image) // max(height * width * 3, 1)
    number, lines = _count(boxes) // 4, _count(program) // host_kernels.PROGRAM_WIDTH
    numbers = size * size * 3  # of a view
    num_unfinished = _count(unfinished) // max(numbers, 1)

    # Each call overwrites the status, so none may follow a failure.
    dims = np.zeros(_num_dims(boxes) + 2, np.int64)
    other, kind = (_UINT8, _FLOAT) if output else (_FLOAT, _UINT8)
    result = memory = np.uintp(0)
    empty = _allocate_output(context, 1 - output, other, dims.ctypes, 1, 0, status)
    if not _get_code(status):
        for axis in range(dims.size - 3):
            dims[axis] = _dim(boxes, axis)
        dims[-3], dims[-2], dims[-1] = size, size, 3
        result = _allocate_output(
            context, output, kind, dims.ctypes, dims.size, 0, status
        )
    if not _get_code(status):
        dims[0] = host_kernels.memory_size(size, max(height, width))
        memory = _allocate_temp(context, _FLOAT, dims.ctypes, 1, _on_host, status)
    if not _get_code(status):
        problem = host_kernels.make_views(
            numba.carray(_bytes_at(image), (images, height, 3 * width)),
            numba.carray(_ints_at(boxes), (number, 4)),
            numba.carray(_floats_at(unfinished), (num_unfinished, numbers)),
            numba.carray(
                _floats_at(draws), (_count(draws) // max(num_draws, 1), num_draws)
            ),
            numba.carray(_floats_at(program), (lines, host_kernels.PROGRAM_WIDTH)),
            size,
            antialias != 0,
            numba.carray(_bytes_at(result), (number, 0 if output else numbers)),
            numba.carray(_floats_at(result), (number, numbers if output else 0)),
            numba.carray(_floats_at(memory), (dims[0],)),
        )
        if problem >= 0:
            _set_status(status, _INVALID_ARGUMENT, _problems[problem])

    if _get_code(status):
        _fail(context, status)
    for tensor in (
        image,
        boxes,
        unfinished,
        draws,
        program,
        settings,
        empty,
        result,
        memory,
    ):
        if tensor:
            _delete_tensor(tensor)
    _delete_status(status)


# The operation ------------------------------------------------------------------------


_lock = threading.Lock()  # TensorFlow ends the process that registers twice


@functools.cache
def _register() -> Any:
    """Registers the operation with TensorFlow, once in a process.

    Returns:
      The compiled kernel, which must stay alive. It contains addresses, so each process
      compiles it; `host_kernels.make_views`, which it calls, is cached on disk.
    """
    kernel_function = numba.cfunc("void(uintp, uintp)")(_compute)
    new_operation = _function("TF_NewOpDefinitionBuilder", _HANDLE, _TEXT)
    add_input = _function("TF_OpDefinitionBuilderAddInput", None, _HANDLE, _TEXT)
    add_output = _function("TF_OpDefinitionBuilderAddOutput", None, _HANDLE, _TEXT)
    set_shapes = _function(
        "TF_OpDefinitionBuilderSetShapeInferenceFunction", None, _HANDLE, _ADDRESS
    )
    register_operation = _function("TF_RegisterOpDefinition", None, _HANDLE, _HANDLE)
    new_kernel = _function(
        "TF_NewKernelBuilder", _HANDLE, _TEXT, _TEXT, _ADDRESS, _ADDRESS, _ADDRESS
    )
    register_kernel = _function(
        "TF_RegisterKernelBuilder", None, _TEXT, _HANDLE, _HANDLE
    )

    operation = new_operation(_NAME)
    for text in _INPUTS:
        add_input(operation, text)
    for text in _OUTPUTS:
        add_output(operation, text)
    unknown = _library["TF_ShapeInferenceContextSetUnknownShape"]
    set_shapes(operation, ctypes.cast(unknown, _ADDRESS))
    kernel = new_kernel(_NAME, b"CPU", None, kernel_function.address, None)
    status = _new_status()
    register_operation(operation, status)
    if not _get_code(status):
        register_kernel(_NAME, kernel, status)
    if _get_code(status):
        raise RuntimeError(f"{_NAME.decode()}: {_get_message(status).decode()}")
    _delete_status(status)
    return kernel_function


def register() -> None:
    """Compiles the kernel and registers the operation, once in a process.

    Raises:
      Exception: Numba or TensorFlow's C interface cannot be used.
    """
    with _lock:
        _register()


def views(
    image: tf.Tensor | None,
    boxes: tf.Tensor,
    unfinished: tf.Tensor | None,
    draws: tf.Tensor,
    program: np.ndarray,
    *,
    size: int,
    antialias: bool = False,
    as_floats: bool = False,
) -> tf.Tensor:
    """Views of one image or of several, as an operation of the graph being built.

    Args:
      image: uint8 [H, W, 3], or [n, H, W, 3]; None with `unfinished`.
      boxes: int32 [..., 4], (y, x, height, width) in the image; with n images the same
        number in each.
      unfinished: float32 [..., size, size, 3], views that earlier operations returned,
        in place of images.
      draws: float32 [..., D].
      program: float32 [lines, host_kernels.PROGRAM_WIDTH], the operations.
      size: side of a view in pixels.
      antialias: crops are resized as by Pillow instead of TensorFlow.
      as_floats: returns floats that are not rounded to 256 levels.

    Returns:
      uint8 or float32 [..., size, size, 3].

    Raises:
      ValueError: a shape is wrong or unknown.
      tf.errors.InvalidArgumentError: when run, with one of `host_kernels.PROBLEMS`.
      tf.errors.ResourceExhaustedError: when run, if memory is too small.
    """
    register()
    boxes, draws = tf.convert_to_tensor(boxes), tf.convert_to_tensor(draws)
    image = tf.zeros((0, 1, 1, 3), tf.uint8) if image is None else image
    unfinished = (
        tf.zeros((0, size, size, 3), tf.float32) if unfinished is None else unfinished
    )
    # The kernel relies on these.
    for name, tensor, least, ending in (
        ("image", image, 3, (3,)),
        ("boxes", boxes, 1, (4,)),
        ("unfinished", unfinished, 3, (size, size, 3)),
        ("draws", draws, 1, ()),
        ("program", program, 2, (host_kernels.PROGRAM_WIDTH,)),
    ):
        shape = tf.TensorShape(tensor.shape)
        known = shape.rank is not None and shape.rank >= least
        if not known or tuple(shape[shape.rank - len(ending) :]) != ending:
            raise ValueError(
                f"{name} has shape {shape}: must be known to have {least} or more axes"
                f" and to end with {ending}"
            )
    output = _FLOATS if as_floats else _PIXELS
    inputs = [
        image,
        boxes,
        unfinished,
        draws,
        program,
        np.array([size, output, antialias], np.int32),
    ]
    node = tf.compat.v1.get_default_graph().create_op(
        _NAME.decode(), [tf.convert_to_tensor(x) for x in inputs], list(_DTYPES)
    )
    result = node.outputs[output]
    result.set_shape((*boxes.shape[:-1], size, size, 3))
    return result
