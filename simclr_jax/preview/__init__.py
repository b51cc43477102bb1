"""`python -m simclr_jax.preview`: pictures of the augmentations and training views.

Files, in reading order:
  __main__.py: the command.
  picture.py: from a config to a picture.
  sections.py: what it shows.
  strengths.py: the draws that apply an operation at stated strengths.
  forms.py: views by the host, the device, or as training makes them.
  layout.py: titled sections of labelled tiles.
"""
