"""Checks of `kdpipe doctor`: of the machine, of a cache and models, and of training runs."""
