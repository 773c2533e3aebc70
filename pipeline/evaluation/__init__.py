"""Evaluation: a student held against labels and against what the cache kept of the teacher."""
