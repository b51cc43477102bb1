"""The sides of accuracy.py, what it varies, and how results are compared."""
