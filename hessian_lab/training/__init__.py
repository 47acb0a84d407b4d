"""Training, and the trajectory it leaves on disk."""
