"""Training: batches, one optimizer step, engines, metrics, and the trainer that drives them."""

# Before DeepSpeed is imported, which reads the folder.
from showo_kernels.folders import clear_stale_locks, use_own_folder

clear_stale_locks(use_own_folder())
