"""Bytes that come from another place, checked while they arrive."""
