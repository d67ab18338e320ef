"""Tools that users call before or after `fit`."""
