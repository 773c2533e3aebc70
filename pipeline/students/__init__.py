"""Students: resolved by name, checked against the cache, loaded, run and saved."""
