"""Reads datasets of every supported format as one ``Dataset``, augments them repeatably, and makes batches."""
