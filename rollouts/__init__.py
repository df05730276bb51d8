"""Sampling: records, the generator protocol, the embedded engine and its replicas."""
