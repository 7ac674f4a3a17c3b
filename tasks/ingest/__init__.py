"""Ingest: discover delivered tables, stage them, merge them over the lake, commit."""
