"""Caches made from other caches: parts are taken over as they are, or their rows are written anew.

In: finished caches. Out: a finished cache, with what was done to the others in its manifest.
"""
