"""Training: the loop, its steps, checkpoints, evaluation and recording."""
