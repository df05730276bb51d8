"""Seeing a run: its page, its trace, its curves elsewhere. Reads what stages write; free of torch and Ray."""
