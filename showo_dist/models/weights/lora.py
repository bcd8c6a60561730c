"""LoRA: small trained matrices beside the frozen weights of the blocks, put there by peft."""

import hashlib
from dataclasses import asdict
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import nn

from showo_dist.config.experiment import LoraConfig
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.sources import Weights, fingerprint
from showo_dist.sequences.pack import PackedBatch

_WHOLE = {
    "train_embeddings": "showo.model.embed_tokens.",
    "train_head": "showo.lm_head.",
    "train_projector": "mm_projector.",
}


def add_adapters(model: ShowO, lora: LoraConfig, seed: int) -> None:
    """Freeze a model and give its blocks adapters, which change nothing yet.

    Afterwards ``requires_grad`` says what is trained, and so what an optimizer gets and a checkpoint holds:
    adapters, and the parts that the config trains whole.

    Args:
        model: with its weights, on the CPU.
        lora: what to adapt; ``rank`` above 0.
        seed: of the adapters' first matrices and of dropout.
    """
    settings = PeftConfig(
        r=lora.rank,
        lora_alpha=_alpha(lora),  # type: ignore[arg-type]  # a plain factor, any number will do
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    torch.manual_seed(seed)  # peft draws from the global generator
    inject_adapter_in_model(settings, model.showo)
    prefixes = tuple(prefix for key, prefix in _WHOLE.items() if getattr(lora, key))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(prefixes))
    if lora.dropout:
        model.register_forward_pre_hook(_SeedDropout(seed))


def _alpha(lora: LoraConfig) -> float:
    return float(lora.rank) if lora.alpha is None else lora.alpha


def record_of(model: ShowO, lora: LoraConfig, base: str, weights: Weights) -> dict[str, Any]:
    """What ``config.json`` says of adapters: enough to merge them into the right weights later.

    Args:
        model: with adapters.
        lora: their settings.
        base: folder or hub id of the weights below them.
        weights: these weights.
    """
    named = ((n.replace(".base_layer.", "."), p) for n, p in model.named_parameters())
    frozen = sorted(name for name, parameter in named if not parameter.requires_grad)
    digest = fingerprint((name, weights.read(name)) for name in frozen)
    return {**asdict(lora), "alpha": _alpha(lora), "base": base, "base_sha256": digest}


class _SeedDropout:
    """Before a training forward: dropout follows from the seed and the batch, so that a resumed run is exact.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, model: nn.Module, inputs: tuple[PackedBatch, ...]) -> None:
        if model.training:
            ids = inputs[0].ids_N.cpu().numpy().tobytes()
            digest = hashlib.sha256(str(self.seed).encode() + ids).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
