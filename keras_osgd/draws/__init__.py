"""Draws: from scores to blocks planned ahead of the steps, and to their batches."""
