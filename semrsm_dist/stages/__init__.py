"""The stages of a run: each one a worker that writes to the store, and a driver function that hands out the work."""
