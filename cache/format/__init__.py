"""Numbers and bytes of the cache format, without files: rows, quantizers, codecs, and the rules that rows obey."""
