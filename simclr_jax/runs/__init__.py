"""Run directories.

`directory.py` (the folder and its `config.json`), `format_version.py` (opens older
runs), `checkpoints.py`, `metrics_writer.py` (`metrics.jsonl`), `writers/` (TensorBoard
and others), `health.py` (a verdict from the metrics) and `atomic.py` (files and folders
that appear as a whole or not at all). Evaluations write their receipts below `eval/`
themselves.
"""
