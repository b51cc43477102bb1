"""`python -m simclr_jax.preview`: pictures of training views.

Files, in reading order:
  __main__.py: the command.
  picture.py: views as training draws them, arranged in a grid.
"""
