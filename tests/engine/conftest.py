import os

# Before Ray is imported: no token file in the home folder, no usage report.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
