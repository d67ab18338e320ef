"""`fit`: what it begins, keeps and ends; where all stages meet."""
