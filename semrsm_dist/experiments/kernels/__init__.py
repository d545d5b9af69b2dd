"""The experiment `kernels`."""
