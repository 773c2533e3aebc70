"""Stage one: settings and documents to parts of a cache, written while the teacher predicts the next batch."""
