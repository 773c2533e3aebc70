"""Losses of the student against labels and cached teacher predictions, and their gradients.

`kdpipe.schemas.losses` lists them; `divergences.py` has the formulas for cached entries, `dense_chunk.py` covers whole
distributions, `head_chunks.py` runs output head and losses in one pass and holds one chunk of logits at a time;
`hidden/` compares hidden states.
"""
