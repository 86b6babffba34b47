"""Measures speed, memory and scale and compares each figure with its target: `python -m benchmarks NAME`."""
