"""Documents on their way to the teacher: found, mapped to roles, rendered, tokenised, cut to length, packed."""
