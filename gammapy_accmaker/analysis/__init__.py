"""gammapy's analysis and workflow with an acceptance background, and the command line."""
