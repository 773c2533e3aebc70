"""Training batches: sequences of a cache as tensors, in a seeded order, prefetched."""
