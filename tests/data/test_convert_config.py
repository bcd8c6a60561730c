"""The published keys: what is no shard is refused with its command; captions outside are read."""

import shlex
from pathlib import Path

import pytest

from showo_data.captions import ExternalCaptions
from showo_data.cli import main_shards
from showo_dist.config import load
from showo_dist.training.setup import check_data_paths, external_captions
from tests.data.converting import image, samples

PARAMS = "dataset.params"


def _flow(name: str, path: str, *more: str) -> list[str]:
    return [
        f"training.batch_size_{name}=1",
        f"{PARAMS}.train_{name}_shards_path_or_url={path}",
        *more,
    ]


def _refusal(overrides: list[str]) -> str:
    with pytest.raises(ValueError) as caught:
        check_data_paths(load(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


LLAVA = "dataset.und_type=llava_tuning"
COMMANDS = [
    (_flow("lm", "web/*.parquet"), "from-text 'web/*.parquet'"),
    (_flow("lm", "a.jsonl.gz"), "from-text a.jsonl.gz"),
    (
        _flow("mmu", "llava_v1_5_mix665k.json", LLAVA),
        "from-llava llava_v1_5_mix665k.json --images FOLDER",
    ),
    (_flow("recon", "data/train_000.parquet"), "from-parquet data/train_000.parquet"),
    (_flow("t2i", "a.parquet"), "from-parquet a.parquet --text COLUMN"),
    (
        _flow("t2i", "ILSVRC2012_img_train.tar", "dataset.gen_type=imagenet1k"),
        "from-imagenet ILSVRC2012_img_train.tar --names LOC_synset_mapping.txt",
    ),
]


@pytest.mark.parametrize(("overrides", "command"), COMMANDS)
def test_the_command_is_in_the_message(overrides: list[str], command: str) -> None:
    flow = overrides[0].partition("=")[0].rpartition("_")[2]
    message = _refusal(overrides)
    assert message.startswith(f"{overrides[1].replace('=', ' = ')}: training reads tar shards")
    assert f"`showo-dist shards {command} --out data/{flow}`" in message


def test_an_imagenet_folder_trains_after_the_command_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("n01440764", "n01443537"):
        folder = tmp_path / "image net" / "train" / name
        folder.mkdir(parents=True)
        (folder / "x.JPEG").write_bytes(image(1))
    Path("LOC_synset_mapping.txt").write_text("n01440764 tench\nn01443537 goldfish\n")
    source = f"{tmp_path}/image net/train"
    message = _refusal(_flow("t2i", source, "dataset.gen_type=imagenet1k"))
    command = shlex.split(message.split("`")[1])
    assert command[:3] == ["showo-dist", "shards", "from-imagenet"]
    assert main_shards(command[2:]) == 0
    found = samples(tmp_path / "data" / "t2i", "caption")
    assert sorted(str(sample.text) for sample in found.values()) == ["goldfish", "tench"]
    pattern = "data/t2i/train-{000000..000000}.tar"
    check_data_paths(load(_flow("t2i", pattern, "dataset.gen_type=imagenet1k")))


def test_a_folder_of_images_is_refused_with_its_command(tmp_path: Path) -> None:
    for flow in ("recon", "t2i"):
        assert f"from-folder {tmp_path} --out data/{flow}`" in _refusal(_flow(flow, str(tmp_path)))


def test_compressed_shards_are_refused() -> None:
    assert "unpack them with gunzip, bunzip2" in _refusal(_flow("t2i", "journeydb/{000..009}.tgz"))


@pytest.mark.parametrize(
    "path", ["a.tar", "train-{000..009}.tar", "https://host/a.tar?key=1", "s3://bucket/a.tar"]
)
@pytest.mark.parametrize("kind", ["t2i", "imagenet1k"])
def test_shards_are_accepted(path: str, kind: str) -> None:
    check_data_paths(load(_flow("t2i", path, f"dataset.gen_type={kind}")))


def test_flows_that_are_off_are_not_looked_at() -> None:
    off = ["training.t2i_coeff=0", f"{PARAMS}.train_t2i_shards_path_or_url=a.parquet"]
    check_data_paths(load([*off, *_flow("lm", "a.tar")]))


def test_captions_outside_reach_the_captioned_flows(tmp_path: Path) -> None:
    keys = [
        f"{PARAMS}.external_caption_path={tmp_path}",
        f"{PARAMS}.external_cc12m_caption_path={tmp_path}",
    ]
    config = load(
        [*_flow("t2i", "cc12m/a.tar"), *_flow("mmu", "b.tar"), *_flow("lm", "c.tar"), *keys]
    )
    check_data_paths(config)
    folder = str(tmp_path)
    assert external_captions(config, "t2i") == ExternalCaptions(folder, None, folder, variants=True)
    assert external_captions(config, "mmu") == ExternalCaptions(folder, None, folder)
    assert external_captions(config, "lm") is None
    talking = load([*_flow("mmu", "b.tar", LLAVA), *keys])
    assert external_captions(talking, "mmu") is None
    check_data_paths(talking)


def test_published_placeholders_mean_no_captions_outside() -> None:
    config = load(_flow("t2i", "a.tar", f"{PARAMS}.external_caption_path="))
    check_data_paths(config)
    assert external_captions(config, "t2i") is None


def test_captions_that_cannot_be_found_are_refused(tmp_path: Path) -> None:
    key = f"{PARAMS}.external_caption_path"
    assert f"{key} = gone: no such folder" in _refusal(_flow("t2i", "a.tar", f"{key}=gone"))
    key = f"{PARAMS}.external_laion12m_caption_path"
    message = _refusal(_flow("t2i", "a.tar", f"{key}={tmp_path}"))
    assert f"{key} = {tmp_path}: its shards are known by 'laion'" in message


def test_journeydbs_captions_are_refused_with_their_command() -> None:
    key = f"{PARAMS}.external_journeydb_caption_path"
    message = _refusal(_flow("t2i", "journey/{000..009}.tar", f"{key}=anno.json"))
    command = (
        "from-captions 'journey/{000..009}.tar' --journeydb anno.json --for t2i --out data/t2i"
    )
    assert (
        message.startswith(f"{key} = anno.json: ") and f"`showo-dist shards {command}`" in message
    )


def test_journeydbs_captions_are_not_those_of_class_names() -> None:
    """Stage 1 reads ImageNet's class names as t2i; its captions are of mmu."""
    more = ["dataset.gen_type=imagenet1k", f"{PARAMS}.external_journeydb_caption_path=anno.json"]
    message = _refusal([*_flow("t2i", "imagenet.tar"), *_flow("mmu", "journey.tar"), *more])
    assert "from-captions journey.tar --journeydb anno.json --for mmu --out data/mmu`" in message
