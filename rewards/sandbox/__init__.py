"""Runs programs that a model wrote: a jail in pure Python, a warm pool of jails, verdicts, and the same over HTTP."""
