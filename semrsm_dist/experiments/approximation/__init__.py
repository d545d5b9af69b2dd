"""The experiment `approximation`."""
