"""Fit: begins, keeps and ends a `fit`, and joins all stages from data to gain."""
