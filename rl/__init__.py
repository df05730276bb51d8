"""Reinforcement learning: the GRPO loop, its objective, advantages, batches and loss."""
