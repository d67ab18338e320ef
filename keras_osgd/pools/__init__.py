"""Pools: the same loop for data that is read once (Presample)."""
