"""Training: loss, optimiser, step, loop, checkpoints, metrics."""
