"""A cache under construction, in a folder or in a bucket."""
