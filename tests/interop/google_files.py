"""Writes files in the three layouts of google-research/simclr's checkpoints.

Names and shapes are recorded ones (`tests/golden/google_checkpoint_names.csv.gz`), the
values those of the recorded forward passes. Optimizer slots hold other values.
"""

import csv
import functools
import gzip
import pathlib

import numpy as np
import reference_weights
from tensorflow.core.protobuf import trackable_object_graph_pb2

from simclr_jax.data.tf_cpu import tf

NAMES = pathlib.Path(__file__).parents[1] / "golden" / "google_checkpoint_names.csv.gz"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
STEP = 1234


@functools.cache
def rows():
    """All recorded rows by (config, format)."""
    with gzip.open(NAMES, "rt", newline="") as file:
        table = {}
        for row in csv.DictReader(file):
            table.setdefault((row["config"], row["format"]), []).append(row)
    return table


def tensors(config, layout, *, classes=None):
    """Arrays by name of a whole TF1 or TF2 checkpoint; without the object graph.

    Args:
      config: a recorded one, such as 'r50_1x_sk1_l3_pretrain'.
      layout: 'tf1' or 'tf2'.
      classes: of the linear head; as recorded if None.
    """
    found = {}
    for row in rows()[config, layout]:
        name, kind = row["name"], row["kind"]
        shape = tuple(map(int, filter(None, row["shape"].split("x"))))
        if kind == "linear_head" and classes:
            shape = (*shape[:-1], classes)
        if name == GRAPH:
            continue
        if kind == "bookkeeping":
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


def as_checkpoint(arrays):
    """A TF2 checkpoint: keys are the objects' paths."""
    paths = {
        name.removesuffix(VALUE): name
        for name in arrays
        if ".OPTIMIZER_SLOT" not in name
    }
    return {**arrays, GRAPH: object_graph(paths)}


def as_saved_model(arrays):
    """The same variables under the keys that a SavedModel gives them."""
    kept, paths = {}, {}
    for name, array in arrays.items():
        if not name.startswith("model/"):
            continue
        path = name.removesuffix(VALUE)
        if ".OPTIMIZER_SLOT" in path:
            continue
        part, _, leaf = path.rpartition("/")
        if leaf.startswith("moving"):
            root = "/".join(part.split("/")[:2])
            key = f"{root}/variables/{len(kept)}{VALUE}"
        else:
            key = f"trainable_variables_list/{len(kept)}{VALUE}"
        kept[key], paths[path] = array, key
    return {**kept, GRAPH: object_graph(paths)}


def write(prefix, arrays):
    """Writes a tensor bundle, `prefix.index` and `prefix.data-00000-of-00001`."""
    pathlib.Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    names = sorted(arrays)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(arrays[name]) for name in names],
    )
    return str(prefix)
