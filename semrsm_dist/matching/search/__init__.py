"""The most similar images, without matching all pairs."""
