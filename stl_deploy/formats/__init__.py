"""Files: NIR, checkpoints, rasters, IDX; each read as untrusted data and written whole."""
