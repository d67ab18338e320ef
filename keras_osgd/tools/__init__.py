"""Tools around `fit`: a speedup estimate before; label errors, statistics after."""
