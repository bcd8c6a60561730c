"""Write the golden set of this repository from a full one: ``python -m tests.parity.cut_golden FULL OUT``.

Ids, labels, masks, weights, inputs and losses are kept whole. Large logits keep every fifth column and
large gradients every fourth row, with the kept indices beside them (``NAME.columns``, ``NAME.rows``);
large masks are stored one bit per entry (``NAME.bits``). The weights of the image tokenizer are
replaced by the seed that gives them and their digest.
"""

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

COLUMN_STEP, ROW_STEP = 5, 4
LARGE = 16_000  # bytes; a tensor up to this size is kept whole
TOKENIZER_SEED = 5  # given to torch.manual_seed before the published image tokenizer was built

Tensors = dict[str, Tensor]


def read(path: Path) -> Tensors:
    """Tensors of a golden file; packed masks are unpacked to square boolean matrices."""
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(".bits")]:
        bits = np.unpackbits(tensors.pop(name).numpy(), axis=-1).astype(bool)
        tensors[name.removesuffix(".bits")] = torch.from_numpy(bits[..., : bits.shape[-2]].copy())
    return tensors


def kept(golden: Tensors, name: str, ours: Tensor) -> Tensor:
    """The entries of ``ours`` that the golden set keeps of its tensor ``name``; all of a full set."""
    for suffix, dim in (("rows", -2), ("columns", -1)):
        index = golden.get(f"{name}.{suffix}")
        ours = ours if index is None else ours.index_select(dim, index)
    return ours


def digest(weights: Tensors) -> Tensor:
    """SHA-256 of all values in order of their names, (32,) uint8."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(weights[name].contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(total.digest()), dtype=torch.uint8)


def _cut(name: str, value: Tensor) -> Tensors:
    if value.nbytes <= LARGE:
        return {name: value}
    if value.dtype == torch.bool:
        return {f"{name}.bits": torch.from_numpy(np.packbits(value.numpy(), axis=-1))}
    if "logits" in name:
        columns = torch.arange(0, value.shape[-1], COLUMN_STEP)
        return {name: value[..., columns].contiguous(), f"{name}.columns": columns}
    if name.startswith("grads"):  # the tolerance is relative to the largest entry: keep its row
        rows = {*range(0, len(value), ROW_STEP), int(value.abs().amax(1).argmax())}
        index = torch.tensor(sorted(rows))
        return {name: value[index], f"{name}.rows": index}
    return {name: value}


def main(full: Path, out: Path) -> None:
    """Cut every file of ``full`` into ``out``."""
    for source in full.rglob("*.json"):
        target = out / source.relative_to(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    files = {path.stem: load_file(path) for path in sorted(full.glob("*.safetensors"))}
    shared = files["showo_vq_train"]
    for name, value in list(files["reca_clip_train"].items()):
        if name.startswith("weights.") and name in shared and torch.equal(value, shared[name]):
            del files["reca_clip_train"][name]
    image_tokenizer = files["magvitv2_tiny"]
    weights = {k: image_tokenizer.pop(k) for k in list(image_tokenizer) if not k.startswith("io.")}
    image_tokenizer["weights.seed"] = torch.tensor(TOKENIZER_SEED)
    image_tokenizer["weights.sha256"] = digest(weights)
    for stem, tensors in files.items():
        cut = {key: part for n, value in tensors.items() for key, part in _cut(n, value).items()}
        save_file(cut, out / f"{stem}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
