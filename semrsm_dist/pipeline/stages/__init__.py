"""The stages of a run, each with its driver's part and its workers' part."""
