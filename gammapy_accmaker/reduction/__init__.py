"""Reduction: one observation -> counts and exposure in the field of view."""
