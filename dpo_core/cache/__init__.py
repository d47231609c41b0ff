"""Stage cache: content fingerprints, atomic files, the store of stage outputs, reused reference log-probabilities."""
