"""Transformers models, for teacher and student: folder, config, device, precision, head and layers."""
