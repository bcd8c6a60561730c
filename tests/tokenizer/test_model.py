"""Sizes, grids, and the folder format of the tokenizer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from showo_data.images import to_images
from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig
from showo_dist.tokenizer import checkpoint


@torch.no_grad()
def test_wide_grids_decode_and_agree_with_the_flat_form(tiny: MAGVITv2) -> None:
    codes = torch.randint(0, 16, (2, 6, 10))
    assert tiny.decode(codes).shape == (2, 3, 12, 20)
    square = codes[:, :6, :6]
    assert torch.equal(tiny.decode(square), tiny.decode(square.flatten(1)))
    with pytest.raises(ValueError, match="60 codes are not a square"):
        tiny.decode(codes.flatten(1))


@torch.no_grad()
def test_forward_encode_and_decode_agree(tiny: MAGVITv2) -> None:
    pixels = torch.rand(2, 3, 32, 24) * 2 - 1
    output = tiny(pixels)
    assert torch.equal(output.codes, tiny.encode(pixels))
    torch.testing.assert_close(output.reconstruction, tiny.decode(output.codes.view(2, 16, 12)))


def test_image_of_a_wrong_size_is_named(tiny: MAGVITv2) -> None:
    with pytest.raises(ValueError, match="33×32 pixels: the tokenizer needs multiples of 2"):
        tiny.encode(torch.zeros(1, 3, 32, 33))


@pytest.mark.parametrize("older", [False, True])
def test_saved_folder_loads_to_the_same_model(tiny: MAGVITv2, tmp_path: Path, older: bool) -> None:
    tiny.save_pretrained(tmp_path)
    if older:
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    loaded = MAGVITv2.from_pretrained(tmp_path)
    assert loaded.config == tiny.config
    for name, value in tiny.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_all_files_of_a_checkpoint_have_the_same_permissions(
    tiny: MAGVITv2, tmp_path: Path
) -> None:
    folder = checkpoint.save(tmp_path, 1, 0, tiny, torch.optim.AdamW(tiny.parameters()), 0)
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert {"model.safetensors", "optimizer.safetensors"} < modes.keys()
    assert set(modes.values()) == {modes["config.json"]}


def test_folder_without_the_constants_of_the_codebook_loads(tiny: MAGVITv2, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {k: v for k, v in load_file(path).items() if not k.startswith("quantize.")}
    save_file(weights, path)
    loaded = MAGVITv2.from_pretrained(tmp_path)
    assert torch.equal(loaded.quantize.embedding, tiny.quantize.embedding)


def test_missing_files_are_named(tiny: MAGVITv2, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*pytorch_model\.bin is there"):
        MAGVITv2.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: missing"):
        MAGVITv2.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        MAGVITv2.from_pretrained(tmp_path / "nowhere")


def test_weights_that_do_not_fit_are_named(tiny: MAGVITv2, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bits": 5}))
    with pytest.raises(ValueError, match=r"conv_out\.weight is \[4, 16, 3, 3\].*\[5, 16, 3, 3\]"):
        MAGVITv2.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_broken_weights_are_one_line(
    tiny: MAGVITv2, tmp_path: Path, name: str, damage: bytes
) -> None:
    tiny.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ValueError, match="weights cannot be read"):
        MAGVITv2.from_pretrained(tmp_path)


def test_absurd_sizes_are_refused_before_anything_is_made(tiny: MAGVITv2, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["encoder"]["res_blocks"] = [0, 10**7]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config\.json: encoder\.res_blocks = \[0, 10000000\]"):
        MAGVITv2.from_pretrained(tmp_path)


def test_sizes_that_do_not_fit_are_named(tiny_config: MAGVITv2Config) -> None:
    wrong = {
        "resolution=33": replace(tiny_config, resolution=33),
        "bits=0": replace(tiny_config, bits=0),
        "norm_groups=3": replace(tiny_config, norm_groups=3),
        "level 1 needs at least one block": replace(
            tiny_config, encoder=StackConfig(channels=8, multipliers=[1, 2], res_blocks=[1, 0])
        ),
        "decoder.res_blocks": replace(
            tiny_config, decoder=StackConfig(channels=8, multipliers=[1, 2], res_blocks=[1])
        ),
        "as many levels": replace(
            tiny_config, decoder=StackConfig(channels=8, multipliers=[1], res_blocks=[1])
        ),
    }
    for message, config in wrong.items():
        with pytest.raises(ValueError, match=message):
            config.validate()


def test_images_are_clipped_and_rounded() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    (image,) = to_images(pixels)
    assert [image.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 128, 191, 255, 255]
