"""Documents of stage one: found, rendered, tokenized, cut to length, packed."""
