"""The experiments: controlled comparisons of importance sampling with its rivals."""
