"""Questions over many runs, one per file."""
