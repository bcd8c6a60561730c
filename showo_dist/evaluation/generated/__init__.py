"""Text-to-image benchmarks: prompts in, images where the benchmark's own scorer looks for them."""

from showo_dist.evaluation.generated.benchmark import BATCH, Benchmark, add_arguments, run
from showo_dist.evaluation.generated.dpg import DPG
from showo_dist.evaluation.generated.geneval import GENEVAL
from showo_dist.evaluation.generated.wise import WISE

BENCHMARKS = {"geneval": GENEVAL, "dpg": DPG, "wise": WISE}

__all__ = ["BATCH", "BENCHMARKS", "Benchmark", "add_arguments", "run"]
