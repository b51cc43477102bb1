"""Checks of a machine or pod before a run, printed by `simclr_jax.doctor`."""
