"""Verbs of the command line that are longer than a few lines, one module each; ``cli`` registers them."""
