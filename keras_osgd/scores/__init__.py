"""Scores, between data and draws: each row's norms, their uncertainty, and p."""
