"""The experiment `translation`."""
