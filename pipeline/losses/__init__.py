"""Losses: what a student says held against what the cache kept of the teacher, and the gradient of that.

`terms.py` names them; `divergences.py` has the formulas for kept entries, `dense_chunk.py` for whole distributions,
`head_chunks.py` runs head and all of them in one pass without ever holding more than a chunk of logits; `hidden/`
compares states.
"""
