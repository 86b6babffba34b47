"""Checks why distillation had no effect or did harm; each file checks a group of causes."""
