"""From a config to the parts of a run: data streams, text tokenizer, encoders. User errors surface here."""

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from showo_data import FlowSpec, Source, clip_transform, vq_transform
from showo_data.captions import ExternalCaptions, check_folder
from showo_data.members import (
    CODES,
    CONDITION,
    EDIT_CODES,
    FEATURES,
    SOURCE_CODES,
    TARGET_CODES,
    Encoded,
    Fit,
)
from showo_data.readers import ExactReader
from showo_data.samples import Kind, Weighted
from showo_data.shards import Storage, expand
from showo_data.shards.names import misnamed
from showo_dist.checkpoint import SOURCES, CheckpointReader
from showo_dist.checkpoint.slices import EMA, WEIGHT, Piece
from showo_dist.config import TrainConfig, active_flows, to_yaml
from showo_dist.config.training import EmaConfig
from showo_dist.models.encoders import ClipTower, Encoders, check_tokenizer, check_tower
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.weights.sources import adapter_record
from showo_dist.models.weights.start import initial_weights
from showo_dist.sequences import TextEncoder
from showo_dist.training.encoded import check_encoded
from showo_dist.training.engine import Engine

_IMAGENET_TAR = "ILSVRC2012_img_train.tar"
_TEXT_FILES = (".parquet", ".jsonl", ".jsonl.gz")
_EDIT_FILES = (".parquet", ".jsonl")
_DOCUMENT_FILES = (".parquet", ".jsonl", ".jsonl.gz")
# Keys of captions outside the shards, and their data sets.
_CAPTIONS = {
    "external_caption_path": "sa1b",
    "external_laion12m_caption_path": "laion12m",
    "external_cc12m_caption_path": "cc12m",
}


def check_data_paths(config: TrainConfig) -> None:
    """Check that every active flow names tar shards, and that captions outside them can be read.

    Raises:
        ValueError: one line with the key and, where there is one, the command that converts the data.
    """
    for name, flow in active_flows(config).items():
        for path in flow.paths:
            arguments = _converter(config, name, path)
            if arguments is not None:
                raise ValueError(
                    f"{flow.path_key} = {path}: training reads tar shards; make them once with "
                    f"`showo-dist shards {arguments} --out data/{name}`, and set {flow.path_key} "
                    "to the pattern that it prints"
                )
            if problem := misnamed(path):
                raise ValueError(f"{flow.path_key} = {path}: {problem}")
    _check_captions(config)


def external_captions(config: TrainConfig, flow: str) -> ExternalCaptions | None:
    """The captions of a flow outside its shards; None if they are inside."""
    params = config.dataset.params
    if flow not in _captioned(config):
        return None
    outside = ExternalCaptions(
        sa1b=params.external_caption_path or None,
        laion12m=params.external_laion12m_caption_path or None,
        cc12m=params.external_cc12m_caption_path or None,
        variants=flow == "t2i",
    )
    return outside if outside.sa1b or outside.laion12m or outside.cc12m else None


def _converter(config: TrainConfig, flow: str, path: str) -> str | None:
    """Arguments of ``showo-dist shards`` that convert a path; None if it is a shard."""
    # What a URL holds is unknown until it is read; the reader checks it.
    if "://" in path or path.startswith("pipe:"):
        return None
    quoted, lower = shlex.quote(path), path.lower()
    if flow == "lm":
        return f"from-text {quoted}" if lower.endswith(_TEXT_FILES) else None
    if flow == "edit":
        return f"from-edits {quoted}" if lower.endswith(_EDIT_FILES) else None
    if flow == "mmu" and config.dataset.und_type != "captioning":
        if lower.endswith(_DOCUMENT_FILES):
            return f"from-interleaved {quoted} --images FOLDER"
        return f"from-llava {quoted} --images FOLDER" if lower.endswith(".json") else None
    # Class tars hold images without captions; the converter adds the class names.
    if flow == "t2i" and config.dataset.gen_type == "imagenet1k":
        unread = not lower.endswith(".tar") or Path(path).name == _IMAGENET_TAR
        return f"from-imagenet {quoted} --names LOC_synset_mapping.txt" if unread else None
    if lower.endswith(".parquet"):
        return f"from-parquet {quoted}" + ("" if flow == "recon" else " --text COLUMN")
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.tar")):
        return None
    return f"from-folder {quoted}"


def _captioned(config: TrainConfig) -> dict[str, tuple[str, ...]]:
    """The active flows whose samples have captions, and their shards."""
    captioning = config.dataset.und_type == "captioning"
    return {
        name: flow.paths
        for name, flow in active_flows(config).items()
        if name == "t2i" or (name == "mmu" and captioning)
    }


def _check_captions(config: TrainConfig) -> None:
    params = config.dataset.params
    shards = [path for paths in _captioned(config).values() for path in paths]
    if not shards:
        return
    journeydb = params.external_journeydb_caption_path
    if journeydb:
        flows = _captioned(config)
        # In stage 1 the shards of t2i are ImageNet's, and JourneyDB's are those of mmu.
        by_mmu = config.dataset.gen_type == "imagenet1k" and "mmu" in flows
        flow = "mmu" if by_mmu else next(iter(flows))
        raise ValueError(
            f"dataset.params.external_journeydb_caption_path = {journeydb}: this file is too large for "
            "every loader process; put its captions into shards once with `showo-dist shards "
            f"from-captions {shlex.join(flows[flow])} --journeydb {shlex.quote(journeydb)} --for {flow} "
            f"--out data/{flow}`, then set it to null"
        )
    for key, name in _CAPTIONS.items():
        if folder := getattr(params, key):
            check_folder(f"dataset.params.{key} =", folder, name, shards)


_UNDERSTANDING: dict[str, Kind] = {
    "captioning": "caption",
    "llava_pretrain": "conversation",
    "llava_tuning": "conversation",
}


def flow_kind(config: TrainConfig, flow: str) -> Kind:
    """The kind of data that a flow reads."""
    # Understanding is the one flow whose data comes in two forms.
    if flow == "mmu":
        return _UNDERSTANDING[config.dataset.und_type]
    kinds: dict[str, Kind] = {"t2i": "caption", "lm": "text", "recon": "image", "edit": "edit"}
    return kinds[flow]


def storage(config: TrainConfig) -> Storage:
    """Access to the shards: cache, retries, pipes."""
    data = config.data
    return Storage(
        cache_dir=data.cache_dir,
        cache_gb=data.cache_gb,
        retries=data.retries,
        timeout_s=data.timeout_s,
        allow_pipe=data.allow_pipe,
    )


def encoded_fits(config: TrainConfig) -> dict[Encoded, Fit]:
    """The sizes of encoded members that fit the model; see :class:`showo_data.members.Fit`."""
    showo, training = config.model.showo, config.training
    keys = "model.showo.num_vq_tokens, codebook_size"
    condition, condition_keys = showo.num_vq_tokens, keys
    if not training.resize_back:
        small = config.dataset.preprocessing.resolution // training.down_scale
        condition = (small // config.model.vq_model.downsample) ** 2
        condition_keys = "training.down_scale, model.showo.codebook_size"
    whole = Fit((showo.num_vq_tokens,), showo.codebook_size, keys)
    return {
        **dict.fromkeys((CODES, SOURCE_CODES, TARGET_CODES), whole),
        CONDITION: Fit((condition,), showo.codebook_size, condition_keys),
        FEATURES: Fit(
            (showo.clip_tokens, showo.clip_dim), keys="model.showo.clip_tokens, clip_dim"
        ),
    }


def flow_specs(config: TrainConfig, clip_size: int | None = None) -> list[FlowSpec]:
    """The streams of the active flows.

    Args:
        config: of the run.
        clip_size: side of the images of the CLIP tower, for models that understand through it.

    Raises:
        ValueError: the data has to be converted to shards first.
    """
    check_data_paths(config)
    resolution = config.dataset.preprocessing.resolution
    squash = config.dataset.recon_type == "mid"
    transforms = {
        "t2i": vq_transform(resolution),
        "mmu": vq_transform(resolution),
        "recon": vq_transform(resolution, "squash" if squash else "short"),
        "edit": vq_transform(resolution),
    }
    encoded: dict[str, tuple[Encoded, ...]] = {
        "recon": (CODES, FEATURES if clip_size else CONDITION),
        "edit": EDIT_CODES,
    }
    # CLIP features replace codes in conversations only; captioning is trained on codes in every model.
    if clip_size and config.dataset.und_type != "captioning":  # captioning reads codes in any model
        transforms["mmu"], encoded["mmu"] = clip_transform(clip_size), (FEATURES,)
    fits = encoded_fits(config)
    return [
        FlowSpec(
            flow=name,
            kind=flow_kind(config, name),
            urls=() if flow.mixture else flow.paths,
            mixture=tuple(Weighted(part.paths, part.weight) for part in flow.mixture),
            batch=flow.batch_size,
            transform=transforms.get(name),
            encoded=encoded.get(name, (CODES,)),
            max_images=config.dataset.max_images,
            fits={member: fits[member] for member in encoded.get(name, (CODES,))},
            captions=external_captions(config, name),
            seed=config.data_seed,
            streams=config.data.streams,
            window=config.shuffle_window,
            sampling=config.data.sampling,
            storage=storage(config),
        )
        for name, flow in active_flows(config).items()
    ]


def data_order(spec: FlowSpec) -> dict[str, str]:
    """Everything that decides which sample is at which position of a flow, in words, for checkpoints."""
    reader = Source(spec).reader
    order = {"seed": str(spec.seed), "sampling": spec.sampling}
    if len(spec.parts) > 1:
        counts = [len(expand(part.urls, spec.storage)) for part in spec.parts]
        order["mixture"] = ", ".join(f"{part.weight:g}" for part in spec.parts)
        order[SOURCES] = ", ".join(map(str, counts))
    if not isinstance(reader, ExactReader):
        names = [url for part in spec.parts for url in part.urls]
        return {**order, "shards": f"{hashlib.sha256(repr(names).encode()).hexdigest()[:12]}"}
    # Names without folders: data may move. Checksums come from the indexes, no shard is read.
    lines = [f"{Path(s.path).name} {s.samples} {s.sha256}" for s in reader.shards]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    samples = sum(shard.samples for shard in reader.shards)
    return {
        **order,
        "streams": str(spec.streams),
        "window": str(spec.window),
        "shards": f"{digest} ({len(lines)} shards, {samples} samples)",
    }


def check_data_order(
    reader: CheckpointReader | None, data: dict[str, dict[str, str]], allowed: bool
) -> str | None:
    """Compare the data order with that of the checkpoint to resume from.

    Returns:
        The change, for the log, when there is one and it is allowed.

    Raises:
        ValueError: it differs and is not allowed.
    """
    change = reader.state.data_change(data) if reader else None
    if reader is None or change is None:
        return None
    if not allowed:
        raise ValueError(
            f"{reader.folder}: {change}. Restore the data and its settings, start in another "
            "experiment.output_dir with experiment.init_from, or resume in the new order with "
            "experiment.allow_data_change=true"
        )
    return f"{change}; positions continue in the new order"


def check_optimizer(reader: CheckpointReader | None, config: TrainConfig) -> None:
    """Compare the optimizer with that of the checkpoint to resume from: moments of one do not fit another.

    Raises:
        ValueError: it differs.
    """
    if reader is not None and reader.state.optimizer != config.optimizer.name:
        raise ValueError(
            f"{reader.folder}: optimizer.name is {reader.state.optimizer} in the checkpoint, "
            f"{config.optimizer.name} now. Keep it, or start in another experiment.output_dir from the "
            f"weights alone with experiment.init_from={reader.folder}"
        )


def averages_of(reader: CheckpointReader, ema: EmaConfig) -> tuple[str, str | None]:
    """The kind of tensor of the checkpoint to resume from that the averages of the weights continue from.

    Returns:
        The kind, and a line for the log if the checkpoint and the config do not agree on averages.
    """
    stored = bool(reader.names(EMA))
    if ema.decay is None:
        line = f"training.ema.decay is null: the averaged weights of {reader.folder} end here"
        return EMA, line if stored else None
    if stored:
        return EMA, None
    return WEIGHT, f"{reader.folder} has no averaged weights: they start from its weights"


def load_text(config: TrainConfig) -> TextEncoder:
    """The text tokenizer, checked against the vocabulary."""
    source = config.text_tokenizer
    if source is None:
        raise ValueError(
            "model.showo.tokenizer_path and model.showo.llm_model_path are both null: set one"
        )
    return TextEncoder(source, config.model.showo.llm_vocab_size, config.dataset.chat_template)


def load_encoders(config: TrainConfig, device: torch.device) -> Encoders:
    """The frozen image encoders on the device.

    Raises:
        FileNotFoundError, ValueError: they cannot be read, their codebook is not the config's, or TF32 is
            asked for without an NVIDIA GPU; or shards were encoded by other ones.
    """
    if config.model.encoder_dtype == "tf32" and device.type != "cuda":
        raise ValueError(
            f"model.encoder_dtype = tf32: needs an NVIDIA GPU, this is {device.type}; use fp32 or bf16"
        )
    source = config.model.vq_model.pretrained_model_path or config.model.vq_model.vq_model_name
    vq = MAGVITv2.from_pretrained(source, device)
    vq.requires_grad_(False).eval()
    check_tokenizer(config.model, vq, source)
    clip = None
    if config.model.showo.w_clip_vit:
        clip = ClipTower.from_pretrained(config.model.clip_model_name).to(device)
        check_tower(config.model.showo, clip, config.model.clip_model_name)
    check_encoded(config, vq, clip)
    return Encoders(
        vq,
        clip,
        down_scale=config.training.down_scale,
        resize_back=config.training.resize_back,
        precision=config.model.encoder_dtype,
    )


class RecomputationHint:
    """Predicts beside the first steps whether ``model.gradient_checkpointing`` is needed.

    A process of its own runs the step on shapes, for which it needs neither a GPU nor this one's group.

    Args:
        config: of the run.
        ranks: of the run.
        memory: bytes of a GPU; 0 for a device without a memory of its own, where nothing is predicted.
    """

    def __init__(self, config: TrainConfig, ranks: int, memory: int) -> None:
        self._process: subprocess.Popen[str] | None = None
        distributed = config.distributed
        offloads = distributed.offload_optimizer != "none" or distributed.offload_param != "none"
        if not (memory and config.model.gradient_checkpointing) or offloads:
            return
        if distributed.engine != "deepspeed":
            return
        self._file = tempfile.NamedTemporaryFile("w", suffix=".yaml")  # noqa: SIM115 - closed by close()
        self._file.write(to_yaml(config))
        self._file.flush()
        launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        kept = {key: value for key, value in os.environ.items() if key not in launcher}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "showo_dist.cli", "plan", f"config={self._file.name}"),
                *("--gpus-per-host", str(ranks), "--recomputation", f"{memory / 1e9:.1f}"),
            ],
            env={**kept, "CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def poll(self) -> list[str]:
        """The line for the log, once, if recomputation is not needed or the prediction failed."""
        if self._process is None or self._process.poll() is None:
            return []
        printed, _ = self._process.communicate()
        failed = self._process.returncode != 0
        self.close()
        if failed:
            return ["whether model.gradient_checkpointing is needed could not be predicted"]
        return [line for line in printed.splitlines() if line.startswith("model.gradient_")]

    def close(self) -> None:
        """End the process, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._file.close()
        self._process = None


def carry_optimizer(engine: Engine, config: TrainConfig) -> None:
    """Load moments and step count from ``experiment.init_from``; new rows start with moment 0.

    Raises:
        ValueError: the source is not a training checkpoint, holds adapters, or had another optimizer.
    """
    source = Path(str(config.experiment.init_from))
    reader = CheckpointReader(source)
    if adapter_record(source):
        raise ValueError(f"experiment.init_optimizer = True: {source} holds LoRA adapters")
    check_optimizer(reader, config)
    weights = initial_weights(config.model.showo, source, config.training.seed)

    def whole(kind: str, name: str) -> Tensor:
        # The average of a new run starts from its first weights.
        if kind in (WEIGHT, EMA):
            return weights.read(name)
        # New parameters have no moments; old ones keep theirs row by row.
        known = name in weights.source.meta
        return weights.carried(name, reader.read(kind, name) if known else None)

    def read(piece: Piece) -> Tensor:
        return whole(piece.kind, piece.name).flatten()[piece.start : piece.stop]

    engine.restore(read, reader.state.optimizer_steps)
