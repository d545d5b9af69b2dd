"""A run from images to matrices: the driver, and the stages that it goes through."""
