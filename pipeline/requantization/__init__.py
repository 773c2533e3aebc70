"""Requantization: fewer ids, draws, temperatures or columns, from a cache alone, without its teacher."""
