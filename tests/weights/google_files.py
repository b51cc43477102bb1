"""Writes files in the layouts of google-research/simclr's checkpoints.

Names and shapes are recorded ones (`tests/golden/google_checkpoint_names.csv.gz`), the
values those of the recorded forward passes. Optimizer slots hold other values.
"""

import csv
import functools
import gzip
import math
import pathlib

import numpy as np
import reference_weights
from tensorflow.core.protobuf import trackable_object_graph_pb2

from simclr_jax.data.tf_cpu import tf

NAMES = pathlib.Path(__file__).parents[1] / "golden" / "google_checkpoint_names.csv.gz"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
STEP = 1234
_LARGE = 10  # sizes above it are numbers of channels


@functools.cache
def rows():
    """All recorded rows by (config, format)."""
    table = {}
    with gzip.open(NAMES, "rt", newline="") as file:
        for row in csv.DictReader(file):
            row["shape"] = tuple(map(int, filter(None, row["shape"].split("x"))))
            table.setdefault((row["config"], row["format"]), []).append(row)
    return table


def tensors(config, layout, *, classes=None, divisor=1):
    """Arrays by name of a whole TF1 or TF2 checkpoint, without the object graph.

    Args:
      config: a recorded one, such as 'r50_1x_sk1_l3_pretrain'.
      layout: 'tf1' or 'tf2'.
      classes: of the linear head; as recorded if None.
      divisor: of all channels, for small files.
    """
    found = {}
    for row in rows()[config, layout]:
        name, kind = row["name"], row["kind"]
        shape = tuple(n // divisor if n > _LARGE else n for n in row["shape"])
        if kind == "linear_head" and classes:
            shape = (*shape[:-1], classes)
        if kind == "bookkeeping":
            if name != GRAPH:
                found[name] = np.int64(STEP)
        elif kind == "optimizer":
            found[name] = np.full(shape, 7.0, np.float32)
        else:
            value = reference_weights.formula(row["canonical_name"], shape)
            found[name] = value.astype(np.float32)
    return found


def object_graph(keys):
    """The serialized graph in which variables are at paths and have keys."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.nodes.add()
    children = {}
    for path, key in keys.items():
        node = 0
        for name in path.split("/"):
            if (node, name) not in children:
                children[node, name] = len(graph.nodes)
                graph.nodes[node].children.add(
                    node_id=len(graph.nodes), local_name=name
                )
                graph.nodes.add()
            node = children[node, name]
        graph.nodes[node].attributes.add(name="VARIABLE_VALUE", checkpoint_key=key)
    return graph.SerializeToString()


def model_paths(arrays):
    """The model's arrays by object path, without slots and bookkeeping."""
    return {
        name.removesuffix(VALUE): array
        for name, array in arrays.items()
        if name.startswith("model/") and ".OPTIMIZER_SLOT" not in name
    }


def as_checkpoint(arrays):
    """A TF2 checkpoint: keys are the objects' paths."""
    paths = {n.removesuffix(VALUE): n for n in arrays if ".OPTIMIZER_SLOT" not in n}
    return {**arrays, GRAPH: object_graph(paths)}


def as_saved_model(arrays):
    """The same variables under such keys as a SavedModel gives them."""
    kept, paths = {}, {}
    for path, array in model_paths(arrays).items():
        root = "/".join(path.split("/")[:2])
        moving = path.rpartition("/")[2].startswith("moving")
        root = f"{root}/variables" if moving else "trainable_variables_list"
        paths[path] = f"{root}/{len(kept)}{VALUE}"
        kept[paths[path]] = array
    return {**kept, GRAPH: object_graph(paths)}


def as_objects(arrays):
    """The model's variables as TensorFlow objects at their paths."""
    root = tf.Module()
    for path, array in model_paths(arrays).items():
        *parents, leaf = path.split("/")
        node = root
        for name in parents:
            if not hasattr(node, name):
                setattr(node, name, tf.Module())
            node = getattr(node, name)
        trainable = not leaf.startswith("moving")
        setattr(node, leaf, tf.Variable(array, trainable=trainable))
    return root


def write(prefix, arrays):
    """Writes a tensor bundle, `prefix.index` and `prefix.data-00000-of-00001`.

    Returns:
      The prefix; for a SavedModel's tensors it is below the folder that was given.
    """
    pathlib.Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    names = sorted(arrays)
    if any(name.startswith("trainable_variables_list/") for name in names):
        prefix = pathlib.Path(prefix, "variables", "variables")
        prefix.parent.mkdir(parents=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(arrays[name]) for name in names],
    )
    return str(prefix)


def size(arrays):
    """Number of values."""
    return sum(math.prod(np.shape(array)) for array in arrays.values())
