"""One DeepSpeed engine, one forward per micro-step, one mean per flow over the whole global batch."""

import os

import torch

if not torch.cuda.is_available():
    # DeepSpeed looks for an accelerator once, when it is first imported.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# oneDNN keeps compiled kernels per shape, 1,024 by default; packed rows differ in length from step to
# step, so that would grow to gigabytes of kernels that are hardly ever used again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
