"""Observations in, reduced runs out."""
