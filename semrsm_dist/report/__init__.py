"""Pictures of a run that people look at."""
