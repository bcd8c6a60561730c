"""Data outside tar shards: refused with the command that converts it, or, for captions, where it is read."""

import shlex
from pathlib import Path

from showo_data.captions import ExternalCaptions
from showo_dist.config import TrainConfig, active_flows

_IMAGENET_TAR = "ILSVRC2012_img_train.tar"
_TEXT_FILES = (".parquet", ".jsonl", ".jsonl.gz")
# Keys of captions outside the shards, and the word in a shard's path by which its set is known.
_WORDS = {
    "external_caption_path": "",  # known by the keys of the samples
    "external_laion12m_caption_path": "laion",
    "external_cc12m_caption_path": "cc12m",
}


def check_data_paths(config: TrainConfig) -> None:
    """Check that every active flow names tar shards, and that captions outside them can be read.

    Raises:
        ValueError: one line with the key and, where there is one, the command that converts the data.
    """
    for name, flow in active_flows(config).items():
        for path in flow.paths:
            if path.lower().endswith((".tgz", ".tar.gz")):
                raise ValueError(
                    f"{flow.path_key} = {path}: compressed shards cannot be read by offset; unpack "
                    "them with gunzip and name the .tar files"
                )
            arguments = _converter(config, name, path)
            if arguments is not None:
                raise ValueError(
                    f"{flow.path_key} = {path}: training reads tar shards; make them once with "
                    f"`showo-dist shards {arguments} --out data/{name}`, and set {flow.path_key} "
                    "to the pattern that it prints"
                )
    _check_captions(config)


def external_captions(config: TrainConfig, flow: str) -> ExternalCaptions | None:
    """Where captions of a flow lie outside its shards; None where they do not."""
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
    """Arguments of ``showo-dist shards`` for what is no shard; None for shards."""
    if "://" in path or path.startswith("pipe:"):
        return None
    quoted, lower = shlex.quote(path), path.lower()
    if flow == "lm":
        return f"from-text {quoted}" if lower.endswith(_TEXT_FILES) else None
    if flow == "mmu" and config.dataset.und_type != "captioning":
        return f"from-llava {quoted} --images FOLDER" if lower.endswith(".json") else None
    if flow == "t2i" and config.dataset.gen_type == "imagenet1k":
        unread = not lower.endswith(".tar") or Path(path).name == _IMAGENET_TAR
        return f"from-imagenet {quoted} --names LOC_synset_mapping.txt" if unread else None
    if lower.endswith(".parquet"):
        return f"from-parquet {quoted}" + ("" if flow == "recon" else " --text COLUMN")
    return f"from-folder {quoted}" if Path(path).is_dir() else None


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
        flow, paths = next(iter(_captioned(config).items()))
        raise ValueError(
            f"dataset.params.external_journeydb_caption_path = {journeydb}: this file is too large for "
            "every loader process; put its captions into shards once with `showo-dist shards "
            f"from-captions {shlex.join(paths)} --journeydb {shlex.quote(journeydb)} --for {flow} "
            f"--out data/{flow}`, then set it to null"
        )
    for key, word in _WORDS.items():
        folder = getattr(params, key)
        if not folder:
            continue
        if not Path(folder).is_dir():
            raise ValueError(f"dataset.params.{key} = {folder}: no such folder")
        if not any(word in path for path in shards):
            raise ValueError(
                f"dataset.params.{key} = {folder}: its shards are known by {word!r} in their path, "
                "which no shard has"
            )
