"""What a similarity matrix is worth: one experiment a file."""
