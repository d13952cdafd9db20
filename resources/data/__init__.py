"""Labelled data: tables, readers, and the procedural sample."""
