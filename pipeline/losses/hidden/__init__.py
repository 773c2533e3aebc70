"""Hidden-state losses: the student's layers against cached states of the teacher's layers."""
