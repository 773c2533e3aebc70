"""Verbs: the two stages and their parts. The stages meet in the cache alone."""
