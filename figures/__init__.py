"""Pictures of records, one per file."""
