"""Distillation methods: one interface, a file or package a method, and the registry of methods."""
