"""Measuring frozen encoders: features, nearest neighbours, linear evaluation."""
