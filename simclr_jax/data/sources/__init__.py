"""Sources of images; `registry.open_source` opens a dataset by its name."""
