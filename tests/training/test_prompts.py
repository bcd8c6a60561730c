"""Prompts of image grids, gallery and reconstruction, read from files that other programs wrote."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from showo_dist.config import TrainConfig
from showo_dist.report.gallery.cli import read_prompts
from showo_dist.training.batches import SequenceMaker
from showo_dist.training.images import ImageGrids


def _grids(path: Path) -> list[str]:
    config = TrainConfig()
    config.dataset.params.validation_prompts_file = str(path)
    maker: Any = SimpleNamespace(config=config)
    return ImageGrids._read_prompts(maker)


def _gallery(path: Path) -> list[str]:
    return list(read_prompts(Namespace(prompt=None, prompts=str(path), limit=6), []))


def _requests(path: Path) -> list[str]:
    """The requests for a description that a training encodes, without their frame."""
    config = TrainConfig()
    config.dataset.params.description_prompts_file = str(path)
    text: Any = SimpleNamespace(encode=lambda words: words)
    unused: Any = None
    found: Any = SequenceMaker(config, text, unused, unused)._prompts
    return [words.removeprefix("USER: \n").removesuffix(" ASSISTANT:") for words in found]


@pytest.mark.parametrize("read", [_grids, _gallery, _requests])
def test_prompt_files(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa ring\r\n\r\na\xe2\x80\xa8square\r\n")
    assert read(path) == ["a ring", "a\u2028square"]
    for data, words in ((b"a\ncaf\xe9", r"not UTF-8 \(line 2\)"), (b"\n", "holds no prompt")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"prompts\.txt: {words}"):
            read(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"prompts\.txt: No such file"):
        read(path)


def test_requests_that_do_not_fit_beside_features_are_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("short\n" + "x" * 300 + "\n")
    assert len(_requests(path)) == 2
    config = TrainConfig()
    config.model.showo.w_clip_vit = True
    config.dataset.params.description_prompts_file = str(path)
    unused: Any = None
    text: Any = SimpleNamespace(encode=list)
    with pytest.raises(
        ValueError, match=r"prompts\.txt: 'xxx.*tokens, at most 123 fit beside CLIP"
    ):
        _ = SequenceMaker(config, text, unused, unused)._prompts


def test_conversations_without_room_beside_features_are_named() -> None:
    config = TrainConfig()
    config.model.showo.w_clip_vit = True
    config.dataset.und_type = "llava_tuning"
    config.training.batch_size_mmu = 1
    unused: Any = None
    text: Any = SimpleNamespace(encode=lambda words: [0] * 28)
    maker = SequenceMaker(config, text, unused, unused)
    sizes, least = config.model.showo, 28 + 576 - config.model.showo.num_vq_tokens + 1
    assert sizes.clip_tokens == 576
    config.dataset.preprocessing.max_seq_length = least
    maker._check_room()
    config.dataset.preprocessing.max_seq_length = least - 1
    with pytest.raises(ValueError, match=rf"max_seq_length = {least - 1}: .* at least {least} is"):
        maker._check_room()
