"""Reading what a run computed."""
