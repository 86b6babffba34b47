"""Renames the tensors of public checkpoints to the names of the models here: one file per layout."""
