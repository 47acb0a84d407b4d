"""Curvature: Hessians of fields, and the numerics that measure them."""
