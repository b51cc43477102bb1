"""Rates of the input pipeline and of the train step."""
