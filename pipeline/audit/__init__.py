"""What verify --against compares: a cache and what its teacher predicts now."""
