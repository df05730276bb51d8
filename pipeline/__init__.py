"""The chain: command line, recipes and their errors, stages and artifacts, evaluation, report."""
