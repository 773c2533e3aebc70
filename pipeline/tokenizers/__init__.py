"""Tokenizers: loaded, kept in a cache, and compared by content."""
