"""A run from images to matrices: the driver and its stages."""
