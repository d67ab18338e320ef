"""The ground: modules that know nothing of the method."""
