"""Judging: (problem, completion) to a score by rules. Free of torch."""
