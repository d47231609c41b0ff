"""Chat formats, one module each."""
