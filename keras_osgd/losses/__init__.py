"""Losses: what the compiled ones are, and each example's share in them."""
