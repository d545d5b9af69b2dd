"""The experiment `conditions`."""
