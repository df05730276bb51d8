"""Models: load and save, tiny architectures, packed attention, MTP, expert load."""
