"""What a recipe will take before it runs: memory, tokens, time and cost. Free of torch but for `planning.measure`."""
