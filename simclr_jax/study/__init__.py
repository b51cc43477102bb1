"""The papers' ablations as grids of configs, each with its figure and its findings.

`__main__.py` and `command.py` (the command), `definitions.py` (what a study is),
`studies.py` (the studies by name; each is in `augmentation_studies.py`,
`architecture_studies.py` or `training_studies.py`), `scales.py` (the configs that they
start from), `runner.py` (runs the missing cells, one after the other), `cells.py` (a
cell's files), `shared.py` (what cells share), `measures.py` (what is measured of a
cell), `findings.py` (verdicts by intervals), and `figures.py`, `tables.py` (what is
written).
"""
