"""The experiment `layers`."""
