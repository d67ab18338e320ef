"""Draws: blocks planned ahead of the steps, and the pipeline that serves them."""
