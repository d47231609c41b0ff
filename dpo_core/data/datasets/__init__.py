"""Named datasets, one module each, their registry, and datasets from a user's own code."""
