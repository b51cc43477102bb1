"""The contenders of input_pipeline.py; each is made in a process of its own."""
