"""Products: a fitted model made into maps, IRFs and files."""
