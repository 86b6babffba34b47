"""Implements DetKDS (ICML 2024): distillation by formulas that are searched instead of written by hand."""
