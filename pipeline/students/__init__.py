"""Students: found, held against the cache, loaded, read with, and saved so that everything else can load them."""
