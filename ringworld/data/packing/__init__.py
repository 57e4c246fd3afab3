"""Examples to full rows, rows of many sources to batches: each a function of (seed, step)."""
