"""Verbs of the command line that have sub-verbs or are longer than a few lines, a file each; ``cli`` registers them."""
