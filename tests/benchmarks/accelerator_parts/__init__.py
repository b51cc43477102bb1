"""The parts of `accelerator.py`; each measures in a process of its own."""
