"""Scores: what is known of each row, how surely, and the p that follows."""
