"""The encoder of a run for use elsewhere, and what `simclr_jax.load` reads."""
