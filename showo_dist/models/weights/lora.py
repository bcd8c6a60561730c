"""LoRA: peft adapters in the blocks of a model, and the record of their base weights in ``config.json``."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import Tensor, nn

from showo_dist.config.experiment import LoraConfig
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.initial import InitialWeights
from showo_dist.models.weights.sources import (
    BASE_HEADING,
    Weights,
    adapter_record,
    check_base,
    own_weights,
    weights_digest,
)
from showo_dist.runtime.numerics import hashed_seed
from showo_dist.sequences.pack import PackedBatch


def add_adapters(model: ShowO, lora: LoraConfig, seed: int) -> None:
    """Freeze a model and add adapters to its blocks; the output does not change (the B matrices are zero).

    Afterwards ``requires_grad`` marks the trained parameters, which an optimizer gets and a checkpoint holds:
    the adapters, and the parts that the config trains whole.

    Args:
        model: on the CPU; of its weights, the adapted layers' decide where the adapters are, and their type.
        lora: with ``rank`` above 0.
        seed: of the adapters' A matrices and of dropout.
    """
    settings = PeftConfig(
        r=lora.rank,
        lora_alpha=_alpha(lora),  # type: ignore[arg-type]  # a plain factor, any number will do
        lora_dropout=lora.dropout,
        target_modules=adapted_layers(model, lora),
    )
    # The modules that the config trains as a whole.
    whole = {
        "train_embeddings": model.embeddings,
        "train_head": model.head,
        "train_projector": getattr(model, "mm_projector", nn.Identity()),
    }
    trained = {
        id(p) for key, module in whole.items() if getattr(lora, key) for p in module.parameters()
    }
    torch.manual_seed(seed)  # peft draws from the global generator
    inject_adapter_in_model(settings, model.showo)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or id(parameter) in trained)
    # Seeded from the batch itself: a resumed run meets the same masks without storing a generator's state.
    if lora.dropout:
        model.register_forward_pre_hook(_SeedDropout(seed))


def adapted_layers(model: ShowO, lora: LoraConfig) -> list[str]:
    """Names of the blocks' linear layers that get an adapter.

    Raises:
        ValueError: ``lora.target_modules`` names one that the blocks do not have.
    """
    known = dict.fromkeys(
        name.rpartition(".")[2]
        for block in model.blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    )
    if lora.target_modules is None:
        return list(known)
    for name in lora.target_modules:
        if name not in known:
            raise ValueError(f"lora.target_modules = {name}: expected some of {', '.join(known)}")
    return lora.target_modules


def _alpha(lora: LoraConfig) -> float:
    return float(lora.rank) if lora.alpha is None else lora.alpha


def attach_adapters(
    model: ShowO,
    weights: InitialWeights,
    lora: LoraConfig,
    base: str,
    seed: int,
    dtype: torch.dtype,
    resume: Path | None = None,
) -> tuple[Callable[[str], Tensor], str]:
    """Freeze a model that has no weights yet and add adapters, which are drawn, or read when resuming.

    Args:
        model: on the meta device.
        weights: the base weights.
        lora: with ``rank`` above 0.
        base: folder or hub id of the base weights.
        seed: of new adapters and of dropout.
        dtype: of the adapters.
        resume: the checkpoint that holds the adapters, if they are not new.

    Returns:
        What gives one whole weight by the model's new names, and a note for the log: how much is trained.

    Raises:
        ValueError: new rows of a table would never be trained, or the checkpoint has other adapters.
    """
    # Named in the record, so that a resumed run adapts the same ones.
    lora = replace(lora, target_modules=adapted_layers(model, lora))
    _stand_in(model, lora.target_modules or [], dtype)
    add_adapters(model, lora, seed)
    _check_new_rows(model, weights)
    model.adapters = _record_of(model, lora, base, weights.source)
    if resume is not None:
        _check_same_adapters(model, resume)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    note = f"LoRA of rank {lora.rank}: {trained:,} parameters are trained"
    return _reader(model, weights, resume), note


def _stand_in(model: ShowO, layers: list[str], dtype: torch.dtype) -> None:
    """Give the layers weights of one number each, on the CPU: peft puts adapters where those are."""
    for name, module in model.showo.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in layers:
            one = torch.zeros((), dtype=dtype)
            module.weight = nn.Parameter(one.expand(module.weight.shape), requires_grad=False)


def _reader(model: ShowO, weights: InitialWeights, resume: Path | None) -> Callable[[str], Tensor]:
    """What gives the base's weights, and the trained ones of a verified checkpoint or as they were drawn."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = own_weights(resume, check=False) if resume is not None else None

    def read(name: str) -> Tensor:
        if own is not None and name in trained:
            return own.read(name).clone()  # it may be a mapped file
        if "lora_" in name:
            return model.get_parameter(name).detach()
        return weights.read(name.replace(".base_layer.", "."))

    return read


def _record_of(model: ShowO, lora: LoraConfig, base: str, weights: Weights) -> dict[str, Any]:
    """The ``lora`` entry of ``config.json``: enough to merge the adapters into the right weights later."""
    named = ((n.replace(".base_layer.", "."), p) for n, p in model.named_parameters())
    frozen = sorted(name for name, parameter in named if not parameter.requires_grad)
    values = ((name, weights.read(name).float()) for name in frozen)
    digest = weights_digest(values, BASE_HEADING)
    return {**asdict(lora), "alpha": _alpha(lora), "base": base, "base_sha256": digest}


def _check_new_rows(model: ShowO, weights: InitialWeights) -> None:
    """New rows must be trained: only then are they in the checkpoint."""
    parameters = dict(model.named_parameters())
    for name in weights.drawn:
        if not parameters[name].requires_grad:
            raise ValueError(
                f"lora: {name} has rows that {weights.source.folder} lacks, and they would never be "
                "trained; set lora.train_embeddings, lora.train_head and lora.train_projector to true"
            )


def _check_same_adapters(model: ShowO, resume: Path) -> None:
    """Raise ``ValueError`` when the checkpoint's adapters have other settings or another base."""
    record = adapter_record(resume)
    assert record is not None and model.adapters is not None
    # Adapters are meaningless over other weights than they were trained over.
    check_base(record, model.adapters["base_sha256"], resume)
    # The base may have moved; its checksum decides.
    own = {**model.adapters, "base": record["base"]}
    changed = [key for key in own if own[key] != record.get(key)]
    if changed:
        raise ValueError(
            f"lora.{changed[0]} = {own[changed[0]]}: {resume} was trained with "
            f"{record.get(changed[0])}"
        )


class _SeedDropout:
    """Before every training forward, seed dropout from the run's seed and the batch: resuming is exact.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, model: nn.Module, inputs: tuple[PackedBatch, ...]) -> None:
        if model.training:
            ids = inputs[0].ids_N.cpu().numpy().tobytes()
            torch.manual_seed(hashed_seed(str(self.seed).encode() + ids))
