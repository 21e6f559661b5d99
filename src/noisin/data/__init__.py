"""Corpora: published, synthetic or a user's own; encoded, described and cut into batches."""
