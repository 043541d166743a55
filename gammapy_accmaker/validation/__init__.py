"""Validation: predictions held against counts and truth. Reads, never feeds back."""
