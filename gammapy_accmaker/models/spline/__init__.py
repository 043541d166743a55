"""The spline model: smooth in energy, offset and zenith angle, adapted to each run."""
