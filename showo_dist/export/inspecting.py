"""``showo-dist inspect``: show the content of a checkpoint or model folder as tables."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from torch import Tensor

from showo_dist.checkpoint.folders import MANIFEST
from showo_dist.checkpoint.reader import CheckpointReader
from showo_dist.checkpoint.slices import EMA, MOMENTS
from showo_dist.checkpoint.state import CONFIG
from showo_dist.config import TrainConfig
from showo_dist.config.loader import load_file
from showo_dist.models.backbone import EMBEDDINGS, block_of
from showo_dist.models.weights.folder import (
    CONFIG_NAME,
    check_prefix,
    inner_folder,
    local_folder,
    read_json,
)
from showo_dist.models.weights.pretrained import read_config
from showo_dist.models.weights.sources import (
    A_SUFFIX,
    B_SUFFIX,
    CheckpointWeights,
    adapter_record,
    own_weights,
)

_ROOTS = ("showo.", "mm_projector.")  # of all names of weights


def inspect(source: str | Path) -> RenderableType:
    """Make tables of a folder: facts about run and model, parameters by part, and files.

    A checkpoint's files are compared with their checksums first.

    Args:
        source: checkpoint, model folder or hub id.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or a file has changed.
    """
    folder = local_folder(source)
    if (folder / MANIFEST).is_file():
        CheckpointReader(folder)  # compares all files, not those of the weights alone
    weights = own_weights(folder, check=False)
    read_config(folder)  # refuses values of another type
    check_prefix(folder, weights.meta, lambda name: name.startswith(_ROOTS))
    is_checkpoint = isinstance(weights, CheckpointWeights)
    facts = dict(_run_facts(folder)) if is_checkpoint else {"kind": "model folder"}
    facts |= dict(_model_facts(folder))
    tables = [_facts(f"{folder}", facts), _parameters(weights.meta), _files(folder)]
    return Group(*tables)


def _run_facts(folder: Path) -> Iterator[tuple[str, str]]:
    reader = CheckpointReader(folder, check=False)
    state = reader.state
    yield "kind", "checkpoint, all checksums match"
    yield "step", f"{state.step:,} ({state.optimizer}: {state.optimizer_steps:,})"
    moments = len({name for kind in MOMENTS for name in reader.names(kind)})
    yield "optimizer", f"moments of {moments} parameters" if moments else "none: weights only"
    if averages := reader.names(EMA):
        yield "averaged weights", f"of {len(averages)} parameters"
    for flow, position in state.positions.items():
        yield f"position in {flow}", f"{position:,}"
    yield "versions", _listed(state.versions)
    if (folder / CONFIG).is_file():
        yield from _config_facts(load_file(folder / CONFIG, TrainConfig, check=False, foreign=True))


def _config_facts(config: TrainConfig) -> Iterator[tuple[str, str]]:
    yield "run", f"{config.experiment.name} in {config.experiment.output_dir}"
    yield "started from", str(config.start_from or config.model.showo.llm_model_path)
    yield "total steps", f"{config.training.max_train_steps:,}"
    rate, stage = config.optimizer.params.learning_rate, config.distributed.zero_stage
    yield "learning rate, ZeRO stage", f"{rate:g}, {stage}"


def _model_facts(folder: Path) -> Iterator[tuple[str, str]]:
    values = read_json(inner_folder(folder) / CONFIG_NAME)
    sizes = ("vocab_size", "llm_vocab_size", "codebook_size", "num_vq_tokens", "w_clip_vit")
    yield "model", _listed({key: values[key] for key in sizes if key in values})
    lora = adapter_record(folder)
    if lora:
        yield "LoRA", f"rank {lora['rank']}, alpha {lora['alpha']:g}, over {lora['base']}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _facts(title: str, facts: Mapping[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in facts.items():
        table.add_row(key, value)
    return table


def _part(name: str) -> str:
    if name.endswith((A_SUFFIX, B_SUFFIX)):
        return "adapters"
    if name.startswith("mm_projector."):
        return "CLIP projector"
    if any(table in name for table in EMBEDDINGS):
        return "embedding table"
    if block_of(name) is not None:
        return "blocks"
    return "head" if any(head in name for head in ("lm_head.", "embed_out.")) else "final norm"


def _parameters(meta: Mapping[str, Tensor]) -> Table:
    counts, dtypes = Counter[str](), dict[str, set[str]]()
    for name, tensor in meta.items():
        part = _part(name)
        counts[part] += tensor.numel()
        dtypes.setdefault(part, set()).add(str(tensor.dtype).removeprefix("torch."))
    table = Table("part", "parameters", "dtype", title="parameters", title_justify="left")
    for part, count in counts.items():
        table.add_row(part, f"{count:,}", ", ".join(sorted(dtypes[part])))
    table.add_section()
    table.add_row("all", f"{counts.total():,}", "")
    return table


def _files(folder: Path) -> Table:
    table = Table("file", "bytes", title="files", title_justify="left")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        table.add_row(str(path.relative_to(folder)), f"{path.stat().st_size:,}")
    return table
