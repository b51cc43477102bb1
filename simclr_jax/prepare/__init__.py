"""Anybody's images as a dataset of indexed shards, for `simclr_jax.prepare`."""
