"""Files that survive a crash: written under a temporary name, synced, renamed; locks; cleanup of old work folders."""
