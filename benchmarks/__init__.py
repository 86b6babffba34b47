"""Figures of speed, memory and scale, each with its target: `python -m benchmarks NAME`."""
