"""The matchers, one file each."""
