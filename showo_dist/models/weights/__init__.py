"""Model weights: folders, checkpoints, adapters, and what a run starts from."""
