"""What a config needs on TPU slices that are not there, from XLA's own compiler."""
