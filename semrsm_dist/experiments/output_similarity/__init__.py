"""The experiment `output-similarity`."""
