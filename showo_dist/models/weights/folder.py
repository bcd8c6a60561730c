"""The released folder format: ``config.json`` beside weights, whole or in shards, local or on the hub."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

CONFIG_NAME = "config.json"
SAFETENSORS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TORCH_NAME = "pytorch_model.bin"  # the older releases
# Prefixes that wrappers put before every name: DDP and DeepSpeed, trainers, torch.compile.
WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")
UNWRAPPED = "unwrapped_model"  # subfolder that the published training code writes

_WEIGHT_NAMES = (SAFETENSORS_NAME, INDEX_NAME, TORCH_NAME)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def local_folder(source: str | Path) -> Path:
    """``source`` itself when it is a folder, else the local copy of that hub repository.

    Raises:
        FileNotFoundError: it is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        files = [CONFIG_NAME, INDEX_NAME, TORCH_NAME, "model*.safetensors"]
        files += [f"{UNWRAPPED}/{name}" for name in files]
        return Path(snapshot_download(str(source), allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"{source}: no such folder, and no such hub repository ({reason})"
        ) from error


@contextmanager
def naming(key: str, source: str | None) -> Iterator[None]:
    """Raise what goes wrong with a model as a ``ValueError`` of one line that names the config's key."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{key} = {source}: {reason}") from None


def from_transformers(family: Any, source: str) -> Any:
    """Load a model of transformers in fp32, of which every weight must be in its files.

    transformers gives missing weights random values, other ones at each call, and only prints a table.

    Args:
        family: a class with ``from_pretrained``.
        source: folder or hub id.

    Raises:
        OSError, ValueError, RuntimeError: the model cannot be read, or has not all weights.
    """
    model, found = family.from_pretrained(
        source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"its files have no weight {missing[0]}{others}, which {family.__name__} needs"
        )
    return model


def inner_folder(folder: Path) -> Path:
    """The folder of config and weights: the folder itself, or the published training code's subfolder."""
    inner = folder / UNWRAPPED
    # A folder that has weights itself is used as it is, even if a subfolder of that name exists.
    here = any((folder / name).is_file() for name in _WEIGHT_NAMES)
    return inner if inner.is_dir() and not here else folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or not a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; a model folder needs it")
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object {{…}}, found a {type(values).__name__}")
    return values


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, safetensors first.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = inner_folder(folder)
    if (folder / SAFETENSORS_NAME).is_file():
        return [folder / SAFETENSORS_NAME]
    if (folder / INDEX_NAME).is_file():
        # Each shard once, in a fixed order.
        shards = read_json(folder / INDEX_NAME).get("weight_map")
        if not isinstance(shards, dict) or not all(map(_is_shard, shards.values())):
            raise ValueError(
                f"{folder / INDEX_NAME}: weight_map is not an object of names of safetensors files"
            )
        names = set(shards.values())
        return [folder / name for name in sorted(names)]
    if (folder / TORCH_NAME).is_file():
        return [folder / TORCH_NAME]
    raise FileNotFoundError(f"{folder}: none of {', '.join(_WEIGHT_NAMES)} is there")


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


class FolderWeights:
    """Weights of a model folder by name, read one at a time; unpickling cannot run code (``weights_only``).

    Safetensors and ``pytorch_model.bin`` of torch 1.6 or newer are mapped: a tensor takes memory when it is
    read.

    Attributes:
        folder: for messages.
        meta: shape and dtype of every weight, as tensors on the meta device.

    Raises:
        FileNotFoundError, ValueError: a file is missing or cannot be read; it is named.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Tensor] = {}
        self._holders: dict[str, tuple[Path, Any]] = {}
        for path in weight_files(folder):
            try:
                self._open(path)
            except FileNotFoundError:
                raise FileNotFoundError(f"{path}: missing, {INDEX_NAME} names it") from None
            except OSError:  # of the disk, not of the file
                raise
            except Exception as error:  # the libraries raise unrelated types on broken files
                raise _cannot_be_read(path, error) from error

    def _open(self, path: Path) -> None:
        if path.suffix == ".safetensors":
            file = safe_open(path, framework="pt")
            names = list(file.keys())
            metas = (_meta_of(file.get_slice(name)) for name in names)
            holder: Any = file.get_tensor
        else:
            state = _torch_file(path)
            _check_flat(state)
            names, holder = list(state), state.__getitem__
            metas = (torch.empty_like(tensor, device="meta") for tensor in state.values())
        self.meta.update(zip(names, metas, strict=True))
        self._holders.update(dict.fromkeys(names, (path, holder)))

    def read(self, name: str) -> Tensor:
        """One whole tensor on the CPU, in the file's dtype.

        Raises:
            ValueError: its file cannot be read.
        """
        path, get = self._holders[name]
        try:
            return get(name)
        except OSError:
            raise
        except Exception as error:
            raise _cannot_be_read(path, error) from error


def _meta_of(tensor_slice: Any) -> Tensor:
    dtype = _DTYPES.get(tensor_slice.get_dtype())
    if dtype is None:
        raise ValueError(f"dtype {tensor_slice.get_dtype()} is not one of {', '.join(_DTYPES)}")
    return torch.empty(tensor_slice.get_shape(), dtype=dtype, device="meta")


def _torch_file(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_flat(state: Any) -> None:
    """Raise ``ValueError`` when a ``.bin`` file holds something else than tensors by name."""
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not tensors by name")
    for name, value in state.items():
        if isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values()):
            raise ValueError(
                f"its weights are inside the entry {name!r}: save that entry alone, "
                f"torch.save(torch.load(file)[{name!r}], file)"
            )
        if isinstance(value, Tensor) and value.layout != torch.strided:
            raise ValueError(
                f"{name!r} is stored as {value.layout}: save it dense, with to_dense()"
            )
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"the entry {name!r} is a {type(value).__name__}, not a tensor: save the weights alone"
            )


def _cannot_be_read(path: Path, error: Exception) -> ValueError:
    reason = str(error).strip().partition("\n")[0]
    return ValueError(f"{path}: weights cannot be read ({reason})")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The whole state dict of a folder.

    Raises:
        FileNotFoundError, ValueError: as :class:`FolderWeights`.
    """
    weights = FolderWeights(folder)
    return {name: weights.read(name) for name in weights.meta}


def check_prefix(folder: Path, names: Iterable[str], is_known: Callable[[str], bool]) -> None:
    """Raise ``ValueError`` when all names would be known without the prefix of a wrapper."""
    names = list(names)
    for prefix in WRAPPER_PREFIXES:
        wrapped = names and all(name.startswith(prefix) for name in names)
        if wrapped and any(is_known(name.removeprefix(prefix)) for name in names):
            raise ValueError(
                f"{folder}: every weight name begins with {prefix!r}, as saved from a wrapped model: save "
                "the inner model's state_dict(), or rename the weights without it"
            )


def check_fit(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Compare names, shapes, and that weights are real numbers.

    Raises:
        ValueError: the weights do not fit; the first few are named.
    """
    check_prefix(folder, found, lambda name: name in expected)
    # All kinds of misfit in one message, but only the first few names.
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not known" for name in found if name not in expected]
    problems += [
        f"{name} is {list(found[name].shape)}, the config asks for {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    problems += [
        f"{name} is {str(found[name].dtype).removeprefix('torch.')}, not floating point"
        for name, tensor in expected.items()
        if name in found and tensor.is_floating_point() and not found[name].is_floating_point()
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(f"{folder}: weights do not fit: {'; '.join(problems[:3])}{more}")
