"""Searches for the best distiller: the space of formulas and its gates."""
