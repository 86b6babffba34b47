"""A workbench for distilling DETR-family object detectors and for seeing why a distillation did or did not work."""

__version__ = "0.1.0"
