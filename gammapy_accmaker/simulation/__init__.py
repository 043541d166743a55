"""Simulated runs of a known truth, and the demo."""
