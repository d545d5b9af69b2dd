"""The configuration of a run: its sections, reading a file, and explaining its problems."""
