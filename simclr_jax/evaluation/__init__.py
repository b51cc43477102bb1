"""Evaluation of frozen encoders.

In reading order: `loop.py` (runs protocols on representations), `protocols.py` (the
table), `context.py` (a representation of a dataset), `features.py`, `knn.py`,
`linear.py` and `linear_sgd.py` (the methods), `metrics.py`, `datasets.py`,
`receipts.py`, `finetune_protocols.py`, `transfer.py`, `transfer_datasets.py` and
`overrides.py` (`--set`).
"""
