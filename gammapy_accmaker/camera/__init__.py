"""Bins of energy and field of view, and the way from sky to camera over time."""
