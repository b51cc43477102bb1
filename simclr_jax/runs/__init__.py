"""Run directories: config, checkpoints, metrics."""
