"""Text-to-image benchmarks: prompts in, pictures where the benchmark's own scorer looks for them."""

from showo_dist.evaluation.painted.benchmark import BATCH, Benchmark, add_arguments, run
from showo_dist.evaluation.painted.dpg import DPG
from showo_dist.evaluation.painted.geneval import GENEVAL
from showo_dist.evaluation.painted.wise import WISE

BENCHMARKS = {"geneval": GENEVAL, "dpg": DPG, "wise": WISE}

__all__ = ["BATCH", "BENCHMARKS", "Benchmark", "add_arguments", "run"]
