"""Configs: their rules, what is derived from them, and when two are the same.

The configs themselves are in `configs/`.
"""
