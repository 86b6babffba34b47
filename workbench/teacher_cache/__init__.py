"""The teacher's outputs on disk, each with the augmentation it belongs to."""
