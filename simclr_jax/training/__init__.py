"""The loop, the train step, checkpoints, metrics, and configs made into parts."""
