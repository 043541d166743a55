"""Acceptance models: counts in, fitted rates out; pure array code."""
