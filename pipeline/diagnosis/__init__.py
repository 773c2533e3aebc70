"""Checks of `kdpipe doctor`: of the machine, its GPUs and training runs, one module for each."""
