"""CLoCKDistill (WACV 2026)."""
