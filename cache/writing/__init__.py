"""A cache under construction: one writer, and a publisher for folders and one for buckets."""
