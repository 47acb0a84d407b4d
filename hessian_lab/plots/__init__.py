"""Pictures, one per file; they read results and compute nothing."""
