"""Step: one weighted training step, from drawn batch to norms and gain ratio."""
