"""One DeepSpeed engine, one forward per micro-step, one mean per flow over the whole global batch."""

import os

import torch

from showo_dist.training.deepspeed_engine import clear_stale_locks, use_own_folder

clear_stale_locks(use_own_folder())
if not torch.cuda.is_available():
    # DeepSpeed looks for an accelerator once, when it is first imported.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
