"""Evaluation: a student against labels and cached teacher predictions, and comparisons between runs."""
