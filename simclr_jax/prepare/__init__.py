"""Builds a dataset of indexed shards from images of any origin.

In reading order: `__main__.py` (the command), `build.py` (its steps), `inputs.py`,
`entries.py`, `archives.py` and `hugging_face.py` (where images come from),
`image_check.py`, `parts.py`, `workers.py`, `layout.py`, `steps.py` and `files.py`.
"""
