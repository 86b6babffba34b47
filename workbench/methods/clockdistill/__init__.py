"""Implements CLoCKDistill (WACV 2026)."""
