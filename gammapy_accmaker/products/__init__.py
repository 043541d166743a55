"""Models in, maps, IRFs, cubes and pictures out."""
