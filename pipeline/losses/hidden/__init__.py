"""Hidden-state losses: a student's layers held against the summaries of the teacher's that the cache keeps."""
