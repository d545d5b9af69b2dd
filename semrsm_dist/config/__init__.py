"""The configuration of a run: its sections, how a file is read, and what is wrong with one."""
