"""Students: a dense model learns from the curated set."""
