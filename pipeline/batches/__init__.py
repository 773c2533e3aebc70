"""Batches of stage two: sequences of a cache as tensors, in a seeded order, made ahead."""
