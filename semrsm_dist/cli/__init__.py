"""The command `semrsm`."""
