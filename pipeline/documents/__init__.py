"""Documents for `cache-teacher`: find, render, tokenize, cut to length and pack."""
