"""FP8 as DeepSeek-V3 uses it: one numeric definition."""
