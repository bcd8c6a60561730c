"""Show-o as a backbone of TorchUMM, which has its own prompts, scorers and judges.

TorchUMM (AIFrontierLab/TorchUMM) lists its backbones in ``umm/inference/pipeline.py``; two lines there add
this one, see docs/evaluation.md. Nothing else imports this file, and it imports nothing of that package.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from showo_data.images import decode
from showo_dist.evaluation.generating import MAX_NEW_TOKENS
from showo_dist.generation.conversation import user
from showo_dist.generation.output import save_image
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.sampling import SamplingOptions
from showo_dist.runtime.numerics import hashed_seed

log = logging.getLogger(__name__)

# Options of Show-o in TorchUMM's configs, by our names.
_NAMES = {
    "guidance_scale": "guidance",
    "generation_timesteps": "steps",
    "num_inference_steps": "steps",
}
_OPTIONS = {field.name for field in fields(SamplingOptions)} - {"schedule"}
_LOADED = ("device", "vq_model", "tokenizer", "clip_model", "precision")


class ShowoBackbone:
    """A trained model behind the three calls that TorchUMM makes, with one prompt each.

    An image follows from the seed, its prompt, the name of its file and how often that was asked for before.
    So the samples of a prompt differ, which TorchUMM asks for with equal arguments.
    """

    name = "showo_dist"

    def load(self, cfg: Mapping[str, Any]) -> None:
        """Load the model.

        Args:
            cfg: ``model_path``, a checkpoint, an export, a released folder or a hub id; ``seed`` (0); and
                ``device``, ``vq_model``, ``tokenizer``, ``clip_model``, ``precision`` of ``Pipeline.load``.

        Raises:
            ValueError: another key, or no ``model_path``.
        """
        known = ("model_path", "seed", *_LOADED)
        unknown = sorted(set(cfg) - set(known))
        if unknown or not cfg.get("model_path"):
            wrong = f"unknown {unknown[0]!r}" if unknown else "no model_path"
            raise ValueError(f"inference.backbone_cfg: {wrong}; it takes {', '.join(known)}")
        self.seed = int(cfg.get("seed", 0))
        self.pipeline = Pipeline.load(
            cfg["model_path"], **{name: cfg[name] for name in _LOADED if name in cfg}
        )
        self._asked: Counter[tuple[str, ...]] = Counter()
        self._ignored: set[str] = set()

    def generation(
        self, prompt: str, output_path: str | None, generation_cfg: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Generate an image and save it, if there is a path; the settings of a request are optional."""
        options, seed = self._settings(prompt, output_path, generation_cfg)
        (image,) = self.pipeline.generate([prompt], options, seed)
        return _saved(image, output_path)

    def editing(
        self,
        prompt: str,
        images: Sequence[str | Image.Image],
        output_path: str | None,
        editing_cfg: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Edit one image, given as a path or itself.

        Raises:
            ValueError: there are several.
        """
        if len(images) != 1:
            raise ValueError(f"{len(images)} images to edit: Show-o edits one at a time")
        options, seed = self._settings(prompt, output_path, editing_cfg)
        (image,) = self.pipeline.edit([_image(images[0])], [prompt], options, seed)
        return _saved(image, output_path)

    def understanding(
        self,
        prompt: str,
        images: Sequence[str | Image.Image],
        videos: Sequence[Any],
        understanding_cfg: Mapping[str, Any],
    ) -> dict[str, str]:
        """Answer a question about any number of images with the most likely tokens.

        Raises:
            ValueError: there are videos.
        """
        if videos:
            raise ValueError("a request has videos: Show-o reads images alone")
        self._warn(set(understanding_cfg) - {"max_new_tokens"})
        most = int(understanding_cfg.get("max_new_tokens", MAX_NEW_TOKENS))
        (answer,) = self.pipeline.reply([[user(*map(_image, images), prompt)]], most)
        return {"text": answer}

    def _settings(
        self, prompt: str, output_path: str | None, given: Mapping[str, Any]
    ) -> tuple[SamplingOptions, int]:
        named = {_NAMES.get(name, name): value for name, value in given.items()}
        changes = {name: value for name, value in named.items() if name in _OPTIONS}
        self._warn(named.keys() - _OPTIONS - {"seed"})
        place = (prompt, Path(output_path).name if output_path else "")
        count, self._asked[place] = self._asked[place], self._asked[place] + 1
        seed = "/".join(map(str, (named.get("seed", self.seed), count, *place)))
        return replace(self.pipeline.options, **changes), hashed_seed(seed.encode())

    def _warn(self, names: set[str]) -> None:
        """Say once what is ignored: TorchUMM gives every model the options of some."""
        if names - self._ignored:
            listed = ", ".join(sorted(names - self._ignored))
            log.warning("options of TorchUMM without effect on Show-o: %s", listed)
        self._ignored |= names


def _image(given: str | Image.Image) -> Image.Image:
    return decode(Path(given).read_bytes()) if isinstance(given, str) else given.convert("RGB")


def _saved(image: Image.Image, path: str | None) -> dict[str, Any]:
    if path is None:
        return {"image": image}
    save_image(image, Path(path), {})
    return {"image": image, "output_path": path}
