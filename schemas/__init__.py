"""Nouns: frozen records with their checks. Imports the standard library and pydantic alone."""
