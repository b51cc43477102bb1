"""The whole life of a job at a few steps, before its hours are paid for.

`__main__.py` (the command), `life.py` (what is rehearsed, in order), `afterwards.py`
(evaluation and export) and `checking.py` (how processes judge a check together).
"""
