"""What the job `jobs/chaos.py` is made of: runs, faults, nodes of Ray, and the checks after each session."""
