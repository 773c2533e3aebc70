"""What is kept of the teacher's distribution at a row: reduced from logits on their device, a kind a module."""
