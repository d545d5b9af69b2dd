"""Verification of a run: whether what is stored decodes, belongs here, and is what the images and the matcher give."""
