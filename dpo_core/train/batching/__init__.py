"""Microbatches: packing, layouts, attention over prefix trees, the automatic token budget."""
