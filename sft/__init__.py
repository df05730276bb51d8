"""Supervised stages: pre-training of tiny models, cold start, rejection sampling, fine-tuning."""
