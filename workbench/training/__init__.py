"""The loop: one run, its checkpoints, its evaluation and its devices."""
