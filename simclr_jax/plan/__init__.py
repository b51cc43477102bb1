"""The cost of a config's train step on TPU slices, from XLA's own compiler.

No TPU is needed. In reading order: `__main__.py` (the command), `step_compiler.py`
(compiles the step for a slice), `lowering.py`, `tpu_compiler.py`, `topologies.py`
(slices by name), `datasets.py` (numbers of images), `figures.py` (a program's figures)
from `program.py`, `hlo.py` and `traffic.py`, `model_flops.py`, `roofline.py`,
`search.py` (the largest batch), `plans.py` (the result as data) and `report.py`.
"""
