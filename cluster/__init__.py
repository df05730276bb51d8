"""Ray actors: start, wait with deadlines, share, end. A leaf that every room may use."""
