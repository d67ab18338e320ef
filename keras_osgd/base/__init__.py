"""Base: helpers for every other folder, which know nothing of the method."""
