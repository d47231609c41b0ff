"""Recipe: its settings, where they are read from, spelling suggestions, and redaction of secrets."""
