"""The stages of a run, each with what the driver does and what its workers do."""
