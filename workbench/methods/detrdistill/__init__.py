"""Implements DETRDistill (ICCV 2023)."""
