"""Experiments: what RSMs are worth. One experiment a file, each run on data that ships unless told otherwise."""
