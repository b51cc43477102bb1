"""The shipped configs. `base.py` is complete; the others change a few lines of it."""
