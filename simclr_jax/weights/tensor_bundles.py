"""TensorFlow's checkpoint files and their object graph.

Kept apart from `google`, which is about names, so that one module imports TensorFlow.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax.errors import DataError, first_line
from simclr_jax.weights.named_tensors import Tensors

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Where a SavedModel's folder holds its tensors.
SAVED_MODEL_PREFIX = "/variables/variables"


class ObjectGraph:
    """The object graph of a TF2 file: paths of variables and their keys."""

    def __init__(self, nodes: list[tuple[dict[str, int], str | None]]) -> None:
        """Takes (children by name, key of the variable or None) for each node."""
        self._nodes = nodes

    def _node(self, path: str) -> tuple[dict[str, int], str | None]:
        node = self._nodes[0]
        for name in path.split("/"):
            child = node[0].get(name)
            if child is None:
                return {}, None
            node = self._nodes[child]
        return node

    def key(self, path: str) -> str | None:
        """The key of the variable at a path; None if there is none."""
        return self._node(path)[1]

    def count(self, path: str) -> int:
        """The number of numbered children of an object."""
        return sum(name.isdecimal() for name in self._node(path)[0])

    def resolve(self, paths: Mapping[Any, str]) -> dict[Any, str]:
        """Replaces paths by the keys of their variables, if these exist."""
        return {place: self.key(path) or path for place, path in paths.items()}


def open_bundle(path: str) -> tuple[Tensors, ObjectGraph | None]:
    """Opens a checkpoint.

    Args:
      path: its prefix, its `.index` file, a folder with one checkpoint or with a file
        `checkpoint`, or a SavedModel's folder; local or gs://.

    Returns:
      (tensors, the object graph of TF2 files or None).

    Raises:
      DataError: it does not exist, or cannot be read.
    """
    from simclr_jax.data.tf_cpu import tf

    prefix = _prefix(path)
    # Damaged files raise any of these.
    errors = (
        tf.errors.OpError,
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
        MemoryError,
    )

    def unreadable(error: BaseException) -> DataError:
        return DataError(f"file {prefix}: cannot be read ({first_line(error)})")

    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {k: tuple(v) for k, v in reader.get_variable_to_shape_map().items()}
        graph = None
        if GRAPH in shapes:
            graph = parse_graph(reader.get_tensor(GRAPH))
    except errors as error:
        raise unreadable(error) from error

    def read(name: str) -> np.ndarray:
        try:
            return reader.get_tensor(name)
        except errors as error:
            raise unreadable(error) from error

    return Tensors(prefix, shapes, read), graph


def _prefix(path: str) -> str:
    from simclr_jax.data.tf_cpu import tf

    path = path.rstrip("/").removesuffix(".index")
    exists = tf.io.gfile.exists
    try:
        if exists(f"{path}.index"):
            return path
        if not exists(path):
            raise DataError(f"--input={path}: there is no such file")
        if not tf.io.gfile.isdir(path):
            raise DataError(
                f"--input={path}: must be a TensorFlow checkpoint (there is no "
                f"{path}.index), a .safetensors or a .pth file"
            )
        if exists(f"{path}{SAVED_MODEL_PREFIX}.index"):
            return f"{path}{SAVED_MODEL_PREFIX}"
        if (latest := tf.train.latest_checkpoint(path)) is not None:
            return latest
        index_files = sorted(tf.io.gfile.glob(f"{path}/*.index"))
    except tf.errors.OpError as error:
        raise DataError(
            f"--input={path}: cannot be read ({first_line(error)})"
        ) from error
    if len(index_files) != 1:
        names = ", ".join(pathlib.PurePath(name).name for name in index_files) or "none"
        raise DataError(
            f"--input={path}: must hold one checkpoint (.index files: {names}), a file "
            "`checkpoint` that names one, or variables/variables.index"
        )
    return index_files[0].removesuffix(".index")


def parse_graph(serialized: bytes) -> ObjectGraph:
    """Parses a serialized TrackableObjectGraph; raises ValueError if it is damaged."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    proto = trackable_object_graph_pb2.TrackableObjectGraph()
    try:
        proto.ParseFromString(serialized)
    except DecodeError as error:
        raise ValueError(f"its object graph is damaged: {error}") from error
    num_nodes = len(proto.nodes)
    children = [child.node_id for node in proto.nodes for child in node.children]
    if not num_nodes or not all(0 <= child < num_nodes for child in children):
        raise ValueError("its object graph is damaged: names nodes that are not there")
    return ObjectGraph(
        [
            (
                {child.local_name: child.node_id for child in node.children},
                next((a.checkpoint_key for a in node.attributes), None),
            )
            for node in proto.nodes
        ]
    )
