"""Gain: from gradient norms to the gain ratio, the learning rate and the clock."""
