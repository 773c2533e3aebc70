"""Targets made poorer: fewer ids, draws, temperatures or columns, from what a cache has kept, without its teacher."""
