"""Files that survive a kill: written beside, synced, renamed; locks and work folders that a later process sweeps."""
