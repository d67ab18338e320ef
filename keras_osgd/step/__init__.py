"""One weighted training step."""
