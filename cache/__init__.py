"""Bytes at rest: codecs, parts, manifest, writer and reader. Never imports torch."""
