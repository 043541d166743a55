"""What any package could use: files written whole, FITS headers, the model file, processes, statistics on arrays."""
