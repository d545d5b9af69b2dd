"""What is compiled: numba, and the vector instructions that it does not emit by itself."""
