"""Understanding benchmarks: question files in, answer files as the benchmark's own scorer reads them out."""

from showo_dist.evaluation.answered.benchmark import BATCH, Benchmark, add_arguments, run
from showo_dist.evaluation.answered.flickr30k import FLICKR30K
from showo_dist.evaluation.answered.gqa import GQA
from showo_dist.evaluation.answered.mme import MME
from showo_dist.evaluation.answered.mmmu import MMMU
from showo_dist.evaluation.answered.pope import POPE
from showo_dist.evaluation.answered.vqav2 import VQAV2

BENCHMARKS = {
    "pope": POPE,
    "mme": MME,
    "gqa": GQA,
    "vqav2": VQAV2,
    "flickr30k": FLICKR30K,
    "mmmu": MMMU,
}

__all__ = ["BATCH", "BENCHMARKS", "Benchmark", "add_arguments", "run"]
