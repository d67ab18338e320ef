"""Examples, guides, benchmarks and experiments; `README.md` says what is where."""
