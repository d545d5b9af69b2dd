"""Images: where they come from, how they are decoded, and the manifest of a run."""
