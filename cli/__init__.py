"""Words: options in, one story called, answer out. Heavy imports happen inside the command."""
