"""Compiled code: numba, and vector instructions that it does not emit by itself."""
