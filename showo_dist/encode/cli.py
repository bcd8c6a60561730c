"""``showo-dist encode``: encode image shards as shards of codes and features."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from showo_data.shards.storage import add_storage_options, storage_of
from showo_dist.encode.shards import EncodeSettings, FrozenEncoders, encode_shards
from showo_dist.models.encoders import ClipTower, encoder_digest
from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config
from showo_dist.runtime.lock import held
from showo_dist.runtime.ranks import PATIENCE_S, Ranks, joined


def main_encode(argv: Sequence[str]) -> int:
    """Encode shards with the frozen encoders, on the ranks that the launcher started.

    Raises:
        ValueError, OSError: errors that a user can fix; the caller prints them as one line.
    """
    arguments = _parser().parse_args(argv)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size {arguments.batch_size}: expected 1 or more")
    _check(arguments)
    with joined(PATIENCE_S) as ranks:
        encoders = _load(arguments, ranks.device)
        if encoders.vq:
            _check_sides(arguments, encoders.vq.config)
        with held(ranks, Path(arguments.out)):
            _encode(arguments, encoders, ranks)
    return 0


def _encode(arguments: argparse.Namespace, encoders: FrozenEncoders, ranks: Ranks) -> None:
    vq, clip = encoders.vq, encoders.clip
    settings = EncodeSettings(
        tokenizer=encoder_digest(vq.encoder) if vq else None,
        resolution=arguments.resolution or (vq.config.resolution if vq else None),
        resize=arguments.resize,
        condition_scale=arguments.condition_scale,
        resize_back=arguments.resize_back,
        keep_images=arguments.keep_images,
        precision=arguments.precision,
        clip=encoder_digest(clip) if clip else None,
        clip_sees=arguments.clip_sees,
        features=arguments.features,
    )
    with Progress(disable=not ranks.is_first) as progress:
        task = progress.add_task("encoding", total=None)
        report = encode_shards(
            arguments.urls,
            arguments.out,
            encoders,
            settings,
            ranks,
            arguments.batch_size,
            lambda done, total: progress.update(task, completed=done, total=total),
            storage_of(arguments),
        )
    rank = f"rank {ranks.rank}: " if ranks.world > 1 else ""
    bad = ", ".join(f"{reason} {count}" for reason, count in report.bad.most_common())
    Console().print(
        f"{rank}{report.written} shards written, {report.skipped} finished before; "
        f"{report.samples} samples encoded, {report.unreadable} without a readable image"
        + (f"; not copied: {bad}, first {report.first_bad}" if bad else ""),
        soft_wrap=True,
        markup=False,
    )


def _check(arguments: argparse.Namespace) -> None:
    if not (arguments.tokenizer or arguments.clip):
        raise ValueError("give --tokenizer, --clip, or both")
    if arguments.clip_sees == "tokenized" and not arguments.tokenizer:
        raise ValueError("--clip-sees tokenized: needs --tokenizer")


def _check_sides(arguments: argparse.Namespace, vq: MAGVITv2Config) -> None:
    """Check that the tokenizer can encode images of the sides that the options give."""
    side = vq.resolution if arguments.resolution is None else arguments.resolution
    if side < 1 or side % vq.downsample:
        raise ValueError(
            f"--resolution {side}: expected a positive multiple of {vq.downsample}, as {vq.resolution}"
        )
    if (scale := arguments.condition_scale) is None:
        return
    if not 1 <= scale <= side:
        raise ValueError(f"--condition-scale {scale}: expected 1 to {side}, the images' resolution")
    if not arguments.resize_back and side // scale % vq.downsample:
        raise ValueError(
            f"--condition-scale {scale}: shrinks {side} pixels to {side // scale}, which is no multiple of "
            f"{vq.downsample}; choose another, or add --resize-back"
        )


def _load(arguments: argparse.Namespace, device: torch.device) -> FrozenEncoders:
    vq = MAGVITv2.from_pretrained(arguments.tokenizer, device) if arguments.tokenizer else None
    clip = ClipTower.from_pretrained(arguments.clip).to(device) if arguments.clip else None
    return FrozenEncoders(vq, clip)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="showo-dist encode", description="Encode the images of shards to codes and features."
    )
    parser.add_argument("urls", nargs="+", metavar="URLS", help="shards: paths or brace patterns")
    parser.add_argument("--tokenizer", help="folder or hub id of the tokenizer: write codes")
    parser.add_argument("--clip", help="folder or hub id of the CLIP tower: write features")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--resolution", type=int, help="pixels; default: the tokenizer's")
    parser.add_argument(
        "--resize",
        choices=["short", "squash"],
        default="short",
        help="short side, then crop; or squash, for reconstruction with recon_type: mid (%(default)s)",
    )
    parser.add_argument(
        "--condition-scale",
        type=int,
        metavar="S",
        help="also encode RecA's condition image, shrunk by S",
    )
    parser.add_argument(
        "--resize-back", action="store_true", help="enlarge the condition image again"
    )
    parser.add_argument(
        "--clip-sees",
        choices=["processed", "tokenized"],
        default="processed",
        help="image for CLIP: processed, for understanding (default), or tokenized, for reconstruction",
    )
    parser.add_argument(
        "--features", choices=["fp32", "fp16"], default="fp32", help="dtype on disk"
    )
    parser.add_argument(
        "--keep-images", action="store_true", help="keep the images beside their codes"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="images per forward pass (%(default)s)"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="fp32")
    add_storage_options(parser)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher
    return parser
