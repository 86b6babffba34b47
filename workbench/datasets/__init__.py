"""Datasets of every supported format as one ``Dataset``, replayable augmentation, and batches."""
