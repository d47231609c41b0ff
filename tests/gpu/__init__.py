"""What only a machine with a GPU can prove: make gpu runs all of it."""
