"""Quantities measured along a trajectory, one per file."""
