"""Show-o as a model of lmms-eval, which has its own questions, scorers and launcher.

    lmms-eval --model showo_dist --model_args pretrained=CHECKPOINT --tasks pope --batch_size 32

The package lmms-eval (0.7) finds :data:`MANIFEST` by an entry point; nothing else imports this file.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from showo_dist.evaluation.generating import MAX_NEW_TOKENS
from showo_dist.generation.conversation import user
from showo_dist.generation.pipeline import Pipeline
from showo_dist.runtime.ranks import default_device

log = logging.getLogger(__name__)

MANIFEST = ModelManifest(
    model_id="showo_dist", simple_class_path="showo_dist.evaluation.lmms.ShowoModel"
)


class ShowoModel(lmms):
    """Answers with the most likely tokens, also where a task asks for sampled ones, with a warning.

    Args:
        pretrained: a checkpoint, an export, a released folder or a hub id.
        batch_size: questions computed together.
        max_batch_size: without effect; lmms-eval gives it to every model.
        options: of ``Pipeline.load``: device, vq_model, tokenizer, clip_model, precision.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        max_batch_size: int | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        options.setdefault("device", default_device(int(os.environ.get("LOCAL_RANK", 0))))
        self.pipeline = Pipeline.load(pretrained, **options)
        self.device = self.pipeline.device
        if not str(batch_size).isdecimal():
            raise ValueError(f"batch_size={batch_size}: expected a number of questions")
        self._batch = int(batch_size)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer questions about any number of images, in their order.

        Raises:
            ValueError: a task asks about something that is no image; it is named.
        """
        if any(request.args[1].get("do_sample") for request in requests):
            log.warning("do_sample is ignored: answers are the most likely tokens")
        answers: list[str] = []
        for limit, part in self._parts(requests):
            turns = [[user(*self._images(request), request.args[0])] for request in part]
            found = self.pipeline.reply(turns, limit, self._batch)
            answers += [
                _cut(answer, request.args[1].get("until") or [])
                for answer, request in zip(found, part, strict=True)
            ]
        return answers

    def _parts(self, requests: Sequence[Instance]) -> Iterator[tuple[int, list[Instance]]]:
        """Batches of requests that share their longest answer, in order."""

        def limit(request: Instance) -> int:
            return request.args[1].get("max_new_tokens", MAX_NEW_TOKENS)

        for most, alike in groupby(requests, limit):
            part = list(alike)
            for start in range(0, len(part), self._batch):
                yield most, part[start : start + self._batch]

    def _images(self, request: Instance) -> list[Image.Image]:
        _, _, doc_to_visual, doc_id, task, split = request.args
        images = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        for image in images:
            if not isinstance(image, Image.Image):
                kind = type(image).__name__
                raise ValueError(f"task {task}: has a {kind} where Show-o reads images alone")
        return images

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: choose tasks of the output type generate_until."""
        raise NotImplementedError("no loglikelihood: choose tasks of output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered: choose tasks of the output type generate_until."""
        raise NotImplementedError("no rounds: choose tasks of output_type generate_until")


def _cut(answer: str, until: str | list[str]) -> str:
    """The answer up to the first of a task's ends."""
    for end in [until] if isinstance(until, str) else until:
        answer = answer.partition(end)[0] if end else answer
    return answer.strip()
