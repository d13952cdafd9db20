"""MIDOG 2025: mitotic figures found (Track 1) and subtyped (Track 2)."""
