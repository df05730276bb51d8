"""What every training stage shares: the trainer rank, optimizer, logprobs, checkpoints, logs."""
