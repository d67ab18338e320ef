"""Parts that benchmarks and experiments share."""
