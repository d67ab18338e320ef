"""Measurements; `examples/README.md` has the command of each."""
