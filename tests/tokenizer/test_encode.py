"""Encoded shards give the same stream as their image shards."""

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from showo_data import FlowSpec, Sample, Skipped, Source, clip_transform, vq_transform
from showo_data.images import Transform
from showo_data.members import CODES, CONDITION, FEATURES, Encoded
from showo_data.shards import write_shard
from showo_dist.encode.cli import main_encode
from showo_dist.encode.shards import EncodeSettings, FrozenEncoders, encode_shards
from showo_dist.models.encoders import ClipTower, Encoders, condition_pixels
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.runtime.ranks import Ranks
from tests.holding import refused_then_done

CLIP_SIDE, PATCH, WIDTH = 24, 8, 16
ALONE = Ranks(0, 1, torch.device("cpu"))
PIXELS = vq_transform(32)
SETTINGS = EncodeSettings(tokenizer="none", resolution=32, condition_scale=2)


def flow(
    folder: Path,
    transform: Transform | None = PIXELS,
    encoded: tuple[Encoded, ...] = (CODES, CONDITION),
) -> Source:
    urls = (str(folder / "train-{000000..000002}.tar"),)
    return Source(
        FlowSpec(
            flow="t2i", kind="caption", urls=urls, batch=1, transform=transform, encoded=encoded
        )
    )


def sample(source: Source, position: int) -> Sample:
    found = source[position]
    assert isinstance(found, Sample)
    return found


@pytest.mark.parametrize("resize_back", [False, True])
def test_stream_over_codes_is_the_stream_over_images(
    shards: Path, tmp_path: Path, tiny: MAGVITv2, resize_back: bool
) -> None:
    settings = replace(SETTINGS, resize_back=resize_back)
    report = encode_shards(
        urls(shards), tmp_path, FrozenEncoders(tiny), settings, ALONE, batch_size=7
    )
    assert (report.written, report.samples, report.unreadable) == (3, 60, 0)
    images, codes = flow(shards), flow(tmp_path, None)
    for position in range(60):
        before, after = sample(images, position), sample(codes, position)
        assert (before.key, before.text) == (after.key, after.text)
        assert before.image_3HW is not None and after.image_3HW is None
        pixels = before.image_3HW[None]
        condition = condition_pixels(pixels, 2, resize_back)
        assert condition.shape[-1] == (32 if resize_back else 16)
        for stored, online in ((after.codes_N, pixels), (after.condition_codes_G, condition)):
            assert stored is not None and torch.equal(stored, tiny.encode(online)[0])


def urls(folder: Path) -> str:
    return str(folder / "train-{000000..000002}.tar")


def test_finished_shards_are_left_alone(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    encode_shards(urls(shards), tmp_path, FrozenEncoders(tiny), SETTINGS, ALONE)
    kept = tmp_path / "train-000000.tar"
    before, content = kept.stat().st_mtime_ns, (tmp_path / "train-000001.tar").read_bytes()
    (tmp_path / "train-000001.tar").unlink()
    report = encode_shards(urls(shards), tmp_path, FrozenEncoders(tiny), SETTINGS, ALONE)
    assert (report.written, report.skipped) == (1, 2)
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "train-000001.tar").read_bytes() == content


def test_samples_that_cannot_be_copied_are_counted_and_keep_their_places(
    tmp_path: Path, tiny: MAGVITv2, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sparse members, two members of one name, a shard that ends inside a member."""
    source = tmp_path / "in"
    source.mkdir()
    for name, colour in zip("abcd", (0, 80, 160, 240), strict=True):
        Image.new("RGB", (32, 32), (colour, 0, 0)).save(source / f"{name}.png")
        (source / f"{name}.txt").write_text(f"text {name}")
    with (source / "b.txt").open("r+b") as stream:
        stream.truncate(1 << 20)
    names = [f"{stem}.{suffix}" for stem in "abcd" for suffix in ("png", "txt")]
    names.insert(5, "c.png")
    command = ["tar", "-S", "--hard-dereference", "-cf", "train-000000.tar", *names]
    subprocess.run(command, cwd=source, check=True)
    shard = source / "train-000000.tar"
    with tarfile.open(shard) as tar:
        end = tar.getmember("d.txt").offset_data + 3
    shard.write_bytes(shard.read_bytes()[:end])
    tiny.save_pretrained(tmp_path / "tokenizer")
    arguments = [
        str(shard),
        "--tokenizer",
        str(tmp_path / "tokenizer"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main_encode(arguments) == 0
    counts = ", ".join(
        f"{reason} 1"
        for reason in ("sparse-member", "duplicate-member", "truncated", "damaged-shard")
    )
    assert f"not copied: {counts}, first {shard}, 'b'" in capsys.readouterr().out
    urls = (str(tmp_path / "out/train-000000.tar"),)
    spec = FlowSpec(
        flow="f", kind="caption", urls=urls, batch=1, encoded=(CODES,), streams=1, window=1
    )
    found = [Source(spec)[position] for position in range(4)]
    assert [item.key for item in found] == ["a", "b", "c", "d"], "each in its place"
    assert [getattr(item, "reason", "good") for item in found] == ["good", *["damaged-shard"] * 3]


def test_one_command_writes_to_a_folder(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    tiny.save_pretrained(tmp_path / "tokenizer")
    arguments = [str(shards / "train-000000.tar"), "--tokenizer", str(tmp_path / "tokenizer")]
    out = tmp_path / "out"
    refused_then_done(out, lambda: main_encode([*arguments, "--out", str(out)]))
    assert (out / "train-000000.tar").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resolution", "0"], "--resolution 0: expected a positive multiple of 2"),
        (["--resolution", "-32"], "--resolution -32: expected a positive multiple"),
        (["--resolution", "33"], "--resolution 33: expected a positive multiple"),
        (["--condition-scale", "0"], "--condition-scale 0: expected 1 to 32"),
        (["--condition-scale", "-2"], "--condition-scale -2: expected 1 to 32"),
        (["--condition-scale", "64", "--resize-back"], "--condition-scale 64: expected 1 to 32"),
        (["--condition-scale", "32"], "shrinks 32 pixels to 1, which is no multiple of 2"),
    ],
)
def test_sides_that_the_tokenizer_cannot_encode_are_refused(
    shards: Path, tmp_path: Path, tiny: MAGVITv2, options: list[str], words: str
) -> None:
    tiny.save_pretrained(tmp_path / "tokenizer")
    arguments = [str(shards / "train-000000.tar"), "--tokenizer", str(tmp_path / "tokenizer")]
    with pytest.raises(ValueError, match=words):
        main_encode([*arguments, "--out", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_ranks_wait_a_day_for_the_slowest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """They meet after the last shard of each; torch's default is ten minutes with NCCL."""
    asked = []

    def join(*_: object, timeout: timedelta, **__: object) -> None:
        asked.append(timeout)
        raise InterruptedError

    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InterruptedError):
        main_encode(["x.tar", "--tokenizer", "x", "--out", "x"])
    assert asked == [timedelta(days=1)]


def test_other_settings_need_another_folder(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    encode_shards(urls(shards), tmp_path, FrozenEncoders(tiny), SETTINGS, ALONE)
    with pytest.raises(ValueError, match="with condition_scale 2, not 4"):
        encode_shards(
            urls(shards),
            tmp_path,
            FrozenEncoders(tiny),
            replace(SETTINGS, condition_scale=4),
            ALONE,
        )


def test_shards_of_one_name_are_refused(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    again = tmp_path / "again" / "train-000001.tar"
    write_shard(again, [{"__key__": "a", "txt": "x"}])
    with pytest.raises(ValueError, match=r"two shards are called train-000001\.tar"):
        encode_shards([urls(shards), str(again)], tmp_path, FrozenEncoders(tiny), SETTINGS, ALONE)


def test_unreadable_image_stays_unreadable_at_its_place(
    shards: Path, tmp_path: Path, tiny: MAGVITv2
) -> None:
    files = [{"__key__": "a", "png": b"no image", "txt": "x"}, {"__key__": "b", "txt": "y"}]
    write_shard(tmp_path / "in" / "bad.tar", files)
    source = str(tmp_path / "in" / "bad.tar")
    report = encode_shards(source, tmp_path / "out", FrozenEncoders(tiny), SETTINGS, ALONE)
    assert (report.samples, report.unreadable) == (2, 2)
    url = str(tmp_path / "out" / "bad.tar")
    transform = vq_transform(32)
    spec = FlowSpec(flow="t2i", kind="caption", urls=(url,), batch=1, transform=transform)
    skipped = [Source(spec)[i] for i in range(2)]
    assert all(isinstance(s, Skipped) for s in skipped)
    assert {s.reason for s in skipped} == {"broken-image", "no-image"}


def test_two_ranks_write_what_one_writes(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    tiny.save_pretrained(tmp_path / "tokenizer")
    command = "import sys; from showo_dist.encode.cli import main_encode as main"
    script = tmp_path / "encode.py"
    script.write_text(f"{command}; main(sys.argv[1:])\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [urls(shards), "--tokenizer", str(tmp_path / "tokenizer"), "--keep-images"]
    done = subprocess.run(
        [*launch, str(script), *arguments, "--out", str(tmp_path / "two")],
        check=True,
        timeout=120,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "rank 0: 2 shards written" in done.stdout and "rank 1: 1 shards" in done.stdout
    begun = json.loads((tmp_path / "two" / "encode.json").read_text())
    loaded = MAGVITv2.from_pretrained(tmp_path / "tokenizer")
    encode_shards(
        urls(shards), tmp_path / "one", FrozenEncoders(loaded), EncodeSettings(**begun), ALONE
    )
    names = sorted(p.name for p in (tmp_path / "one").glob("*.tar"))
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sample(flow(tmp_path / "two", encoded=(CODES,)), 0).codes_N is not None


@pytest.fixture
def tower() -> ClipTower:
    torch.manual_seed(4)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2}
    config = CLIPVisionConfig(
        **sizes, num_hidden_layers=3, image_size=CLIP_SIDE, patch_size=PATCH, projection_dim=8
    )
    return ClipTower(CLIPVisionModel(config))


@pytest.mark.parametrize("sees", ["processed", "tokenized"])
def test_features_are_those_of_the_images(
    shards: Path,
    tmp_path: Path,
    tiny: MAGVITv2,
    tower: ClipTower,
    sees: Literal["processed", "tokenized"],
) -> None:
    """Stored features are those computed from the images, for understanding and for reconstruction."""
    settings = replace(SETTINGS, condition_scale=None, clip="none", clip_sees=sees)
    encoders = FrozenEncoders(tiny, tower)
    report = encode_shards(urls(shards), tmp_path, encoders, settings, ALONE, batch_size=7)
    assert (report.written, report.samples, report.unreadable) == (3, 60, 0)
    transform = PIXELS if sees == "tokenized" else clip_transform(CLIP_SIDE)
    online = Encoders(tiny, tower)
    images, encoded = flow(shards, transform), flow(tmp_path, None, (CODES, FEATURES))
    for position in range(60):
        before, after = sample(images, position), sample(encoded, position)
        assert (before.key, before.text) == (after.key, after.text) and after.image_3HW is None
        (wanted,), (found,) = online.features([before]), online.features([after])
        assert found.shape == ((CLIP_SIDE // PATCH) ** 2, WIDTH)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_half_as_large_features_are_rounded(shards: Path, tmp_path: Path, tower: ClipTower) -> None:
    settings = EncodeSettings(tokenizer=None, resolution=None, clip="none")
    for name, kind in (("whole", "fp32"), ("half", "fp16")):
        to_write = replace(settings, features=kind)  # type: ignore[arg-type]
        encode_shards(urls(shards), tmp_path / name, FrozenEncoders(clip=tower), to_write, ALONE)
    whole, half = (sample(flow(tmp_path / n, None, (FEATURES,)), 0) for n in ("whole", "half"))
    assert whole.features_SC is not None and half.features_SC is not None
    assert torch.equal(half.features_SC, whole.features_SC.half().float())
    assert not torch.equal(half.features_SC, whole.features_SC)


def test_images_and_encoded_samples_share_a_batch(
    shards: Path, tmp_path: Path, tiny: MAGVITv2, tower: ClipTower
) -> None:
    """As in a mixture of an encoded and a plain source."""
    settings = replace(SETTINGS, clip="none", clip_sees="tokenized")
    encode_shards(urls(shards), tmp_path, FrozenEncoders(tiny, tower), settings, ALONE)
    everything: tuple[Encoded, ...] = (CODES, CONDITION, FEATURES)
    plain = [sample(flow(shards), p) for p in range(4)]
    stored = [sample(flow(tmp_path, None, everything), p) for p in range(4)]
    mixed = [stored[0], plain[1], plain[2], stored[3]]
    online = Encoders(tiny, tower)
    for compute in (online.codes, online.condition_codes, online.features):
        wanted, found = compute(plain), compute(mixed)
        assert len(found) == 4
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_missing_encoding_is_named(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    settings = replace(SETTINGS, condition_scale=None)
    encode_shards(urls(shards), tmp_path, FrozenEncoders(tiny), settings, ALONE)
    found = flow(tmp_path)[0]
    assert isinstance(found, Skipped) and found.reason == "no-condition"
    with pytest.raises(ValueError, match=r"holds images, not 'features.npy'"):
        flow(tmp_path, None, (FEATURES,))


def test_the_command_writes_features(shards: Path, tmp_path: Path, tower: ClipTower) -> None:
    tower.tower.save_pretrained(tmp_path / "clip")
    command = [urls(shards), "--clip", str(tmp_path / "clip"), "--out", str(tmp_path / "out")]
    assert main_encode(command) == 0
    stored = sample(flow(tmp_path / "out", None, (FEATURES,)), 3)
    before = sample(flow(shards, clip_transform(CLIP_SIDE)), 3)
    (wanted,) = Encoders(None, tower).features([before])
    torch.testing.assert_close(stored.features_SC, wanted, rtol=1e-5, atol=1e-5)
    for mistake, words in (
        ([], "give --tokenizer, --clip, or both"),
        (["--clip", "x", "--clip-sees", "tokenized"], "needs --tokenizer"),
    ):
        with pytest.raises(ValueError, match=words):
            main_encode([urls(shards), "--out", str(tmp_path / "no"), *mistake])


def test_shards_of_another_source_are_not_taken_for_finished(
    shards: Path, tmp_path: Path, tiny: MAGVITv2
) -> None:
    """Same names, same number of samples, other images."""
    other, out = tmp_path / "other", tmp_path / "out"
    for path in sorted(shards.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            texts = [member for member in tar if member.name.endswith(".png")]
        write_shard(other / path.name, [{"__key__": f"{n}", "txt": "x"} for n in range(len(texts))])
    encoders = FrozenEncoders(tiny)
    encode_shards(urls(shards), out, encoders, SETTINGS, ALONE)
    assert encode_shards(urls(shards), out, encoders, SETTINGS, ALONE).skipped == 3
    with pytest.raises(
        ValueError, match=r"train-000000\.tar: was made of another shard than .*other"
    ):
        encode_shards(urls(other), out, encoders, SETTINGS, ALONE)
