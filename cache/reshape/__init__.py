"""Caches made from other caches: parts are copied unchanged, or their rows are rewritten.

In: finished caches. Out: a finished cache whose manifest records its origin.
"""
