"""Corpora: published, synthetic or a user's own; encoded, cached, described and cut into batches."""
