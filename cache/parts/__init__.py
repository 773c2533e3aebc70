"""The files of a cache and of one part of it, each with its reader and writer."""
