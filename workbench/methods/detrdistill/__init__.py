"""DETRDistill (ICCV 2023)."""
