"""Models that are a function of energy and position with parameters."""
