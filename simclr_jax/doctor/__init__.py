"""Checks of a machine or pod before a run: what `simclr_jax.doctor` prints."""
