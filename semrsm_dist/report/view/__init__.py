"""The page of a run beyond one file: maps as tiles of several levels, served from the store or written as a site."""
