"""Assigning the tokens of one image to those of another."""
