"""Builds a dataset of indexed shards from images of any origin.

In reading order: `__main__.py` (the command), `build.py` (its steps), `inputs.py`,
`patterns.py`, `entries.py`, `lists.py`, `archives.py`, `web_dataset.py`,
`hugging_face.py` and `joined.py` (where images come from), `image_check.py`,
`parts.py`, `workers.py`, `on_beam.py`, `layout.py`, `steps.py` and `files.py`.
"""
