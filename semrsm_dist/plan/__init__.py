"""Cutting the matrix into tasks, and what they cost. Pure: no I/O, no Ray."""
