"""TensorFlow for input pipelines: on the CPU only, so that JAX owns every accelerator.

All modules that need TensorFlow import it from here.
"""

import os

# Before the import: no oneDNN, whose results vary in the last bits with the number of
# threads, and no banner of instruction sets or warnings with the inside of each batch
# that fails. Level 1 is what JAX sets where it is imported first.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

__all__ = ["tf"]
