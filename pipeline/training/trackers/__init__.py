"""Trackers: where a run is followed from elsewhere; metrics.jsonl is always there."""
