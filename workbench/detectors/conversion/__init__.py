"""Public checkpoints in the names of the models here: one file a layout."""
