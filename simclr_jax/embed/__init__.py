"""Features of all images of a dataset in one file, and each image's neighbours.

In reading order: `__main__.py` (the command), `job.py` (its steps), `extraction.py`
(features, part by part), `broken.py` (images that cannot be read), `parts.py` (what is
kept until the end), `writing.py` (from parts to files), `neighbours.py` (the search)
and `outputs.py` (the formats).
"""
