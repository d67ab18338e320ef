"""Losses, between draws and step: the compiled ones and each example's share."""
