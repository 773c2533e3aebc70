"""Training: rates, phases, the guard, checkpoints and the loop itself, in plain torch."""
