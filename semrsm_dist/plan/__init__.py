"""Cutting the matrix into tasks, and their cost. Pure: no I/O, no Ray."""
