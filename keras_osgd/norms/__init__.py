"""Per-example gradient norms."""
