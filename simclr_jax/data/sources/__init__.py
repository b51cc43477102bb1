"""Where images come from; `registry.open_source` opens a dataset by its name."""
