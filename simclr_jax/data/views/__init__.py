"""The definition of a view, and its forms for hosts and accelerators."""
