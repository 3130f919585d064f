"""Training: loss, optimizers, schedules, averaging, checkpoints and the loop. Knows nothing of data or networks."""
