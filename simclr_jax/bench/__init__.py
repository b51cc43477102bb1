"""Rates of the input pipeline and of the train step.

`__main__.py` (the command), `throughput.py` (both sides, and the table) and `stages.py`
(the stages of the input pipeline).
"""
