"""Pools: draws, gain ratio and run for data read in order, as a stream (Presample)."""
