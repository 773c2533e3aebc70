"""Comparison of a cache with fresh predictions of its teacher."""
