"""Conversations and documents with several images: training lays them out as generation does."""

import io
import itertools
import random
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from showo_data import FlowSpec, MicroBatch, Sample, Source, clip_transform, vq_transform
from showo_data.members import CODES, FEATURES
from showo_data.shards import write_shard
from showo_dist.config import TrainConfig
from showo_dist.generation import Pipeline, Turn, assistant, user
from showo_dist.generation.networks import read_model_config
from showo_dist.models.encoders import Encoders
from showo_dist.sequences import Sequence, builders
from showo_dist.sequences.builders import answer_prompt
from showo_dist.training.batches import SequenceMaker
from showo_kernels import Visibility
from tests.sequences.test_chat import TEMPLATES, encoder

WORDS = ["what", "is shown?", "a red circle", "and here,", "ring"]
LENGTH = 600


def _parts(rng: random.Random, images: Seq[Image.Image]) -> list[str | Image.Image]:
    """One to four texts and images; at least one text."""
    parts: list[str | Image.Image] = [rng.choice(images) for _ in range(rng.randrange(3))]
    for _ in range(rng.randrange(1, 3)):
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(WORDS))
    return parts


def _conversation(seed: int, images: Seq[Image.Image]) -> list[Turn]:
    rng = random.Random(seed)
    turns = []
    for number in range(2 * rng.randrange(1, 4)):
        make = assistant if number % 2 else user
        turns.append(make(*_parts(rng, images)))
    return [user(images[0], *turns[0].parts), *turns[1:]]


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _stored(shown: Seq[Image.Image], content: dict) -> dict:
    members = {f"{number}.png": _png(image) for number, image in enumerate(shown)}
    return {"__key__": "a", "json": content, **members}


def _rounds(turns: Seq[Turn]) -> list[dict[str, str]]:
    """The turns as LLaVA stores them, with a marker in the place of each image."""
    roles = {"user": "human", "assistant": "gpt"}
    return [
        {
            "from": roles[turn.role],
            "value": "".join(p if isinstance(p, str) else "<image>" for p in turn.parts),
        }
        for turn in turns
    ]


def _trained(pipeline: Pipeline, folder: Path, checkpoint: Path, stored: dict) -> Sequence:
    """The training sequence of one sample, read from a shard."""
    config: TrainConfig = read_model_config(checkpoint)
    config.dataset.preprocessing.max_seq_length = LENGTH
    write_shard(folder / "a.tar", [stored])
    clip = pipeline.clip
    spec = FlowSpec(
        flow="mmu",
        kind="conversation",
        urls=(str(folder / "a.tar"),),
        batch=1,
        transform=clip_transform(clip.resolution) if clip else vq_transform(pipeline.resolution),
        encoded=(FEATURES if clip else CODES,),
        max_images=20,
    )
    sample = Source(spec)[0]
    assert isinstance(sample, Sample), sample
    encoders = Encoders(pipeline.vq, clip)
    maker = SequenceMaker(config, pipeline.text, pipeline.vocabulary, encoders)
    (sequence,) = maker(MicroBatch({"mmu": [sample]}))
    return sequence


def _begins_with(whole: Sequence, prompt: Sequence) -> None:
    """Same tokens, attention visibility, positions and features as far as the prompt reaches."""
    end = len(prompt)
    assert whole.ids_L[:end].tolist() == prompt.ids_L.tolist()
    seen, wanted = (Visibility.from_documents([s.spans]).dense() for s in (whole, prompt))
    assert torch.equal(seen[:end, :end], wanted)
    assert not seen[:end, end:].any()
    assert whole.position_ids_L is None and prompt.position_ids_L is None
    rows = [_feature_rows(s) for s in (whole, prompt)]
    count = len(rows[1])
    assert torch.equal(rows[0][:count], rows[1])
    assert (rows[0][count:] >= end).all()
    if whole.features_SC is not None and prompt.features_SC is not None:
        torch.testing.assert_close(whole.features_SC[:count], prompt.features_SC)


def _feature_rows(sequence: Sequence) -> torch.Tensor:
    if sequence.features_SC is None:
        return torch.empty(0, dtype=torch.int64)
    if sequence.feature_rows_S is not None:
        return sequence.feature_rows_S
    return torch.arange(len(sequence.features_SC)) + sequence.feature_start


NAMES = [("pipeline", "checkpoint"), ("clip_pipeline", "clip_checkpoint")]


@pytest.mark.parametrize("template", [None, "chatml", "inst"])
@pytest.mark.parametrize("names", NAMES, ids=["codes", "features"])
def test_every_question_is_the_prompt_of_generation(
    names: tuple[str, str],
    template: str | None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    images: list[Image.Image],
) -> None:
    pipeline, checkpoint = map(request.getfixturevalue, names)
    if template:
        pipeline = replace(pipeline, text=encoder(tmp_path, TEMPLATES[template]))
    for seed in range(6):
        turns = _conversation(seed, images)
        shown = [p for turn in turns for p in turn.parts if isinstance(p, Image.Image)]
        stored = _stored(shown, {"conversations": _rounds(turns)})
        whole = _trained(pipeline, tmp_path, checkpoint, stored)
        for asked in range(1, len(turns), 2):
            (prompt,) = pipeline.question_sequences([turns[:asked]])
            _begins_with(whole, prompt)
        # Exactly the texts of the answers are predicted, and the end of each.
        answers = pipeline.text.decode(whole.targets_P.tolist())
        spoken = [p for turn in turns[1::2] for p in turn.parts if isinstance(p, str)]
        assert answers.replace(" ", "") == "".join(spoken).replace(" ", "")
        ends = (whole.targets_P == pipeline.text.end_of_answer).sum()
        assert ends == len(turns) // 2
        assert torch.equal(whole.ids_L[whole.label_rows_P + 1], whole.targets_P)


@pytest.mark.parametrize("names", NAMES, ids=["codes", "features"])
def test_one_numbered_image_is_the_sequence_of_an_image(
    names: tuple[str, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    images: list[Image.Image],
) -> None:
    pipeline, checkpoint = map(request.getfixturevalue, names)
    turns = [user(images[0], "what is shown?"), assistant("a red circle"), user("what?")]
    turns.append(assistant("ring"))
    stored = _stored(images[:1], {"conversations": _rounds(turns)})
    numbered = _trained(pipeline, tmp_path, checkpoint, stored)
    stored["png"] = stored.pop("0.png")
    plain = _trained(pipeline, tmp_path, checkpoint, stored)
    for name in ("ids_L", "label_rows_P", "targets_P"):
        assert torch.equal(getattr(numbered, name), getattr(plain, name)), name
    assert (numbered.spans, numbered.feature_start) == (plain.spans, plain.feature_start)


@pytest.mark.parametrize("names", NAMES, ids=["codes", "features"])
def test_all_text_of_a_document_is_predicted(
    names: tuple[str, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    images: list[Image.Image],
) -> None:
    pipeline, checkpoint = map(request.getfixturevalue, names)
    voc, text = pipeline.vocabulary, pipeline.text
    content = {"texts": ["a ring", None, None, " is shown? ", None, "a red circle", "what"]}
    whole = _trained(pipeline, tmp_path, checkpoint, _stored(images[:3], content))
    first, second, third = pipeline.encode_for_questions(images[:3])
    texts = [text.encode(words) for words in ("a ring", "is shown?", "a red circle\n\nwhat")]
    pieces = [texts[0], first, second, texts[1], third, [*texts[2], voc.eos]]
    _begins_with(whole, answer_prompt(pieces, voc, bos=True))
    assert whole.targets_P.tolist() == [voc.bos, *itertools.chain(*texts), voc.eos]
    assert not any(span.is_global for span in whole.spans), "a text saw an image behind it"


def test_a_document_of_an_image_and_a_text_is_a_caption(
    pipeline: Pipeline, checkpoint: Path, tmp_path: Path, images: list[Image.Image]
) -> None:
    content = {"texts": [None, "a red circle"]}
    found = _trained(pipeline, tmp_path, checkpoint, _stored(images[:1], content))
    ids = pipeline.text.encode("a red circle")
    (codes_N,) = pipeline.encode(images[:1])
    wanted = builders.mmu_caption(ids, codes_N, LENGTH, pipeline.vocabulary)
    assert torch.equal(found.ids_L, wanted.ids_L) and found.spans == wanted.spans
    assert torch.equal(found.targets_P, wanted.targets_P)


@pytest.mark.parametrize("name", ["pipeline", "clip_pipeline"])
def test_prompts_with_images_and_without_in_one_batch(
    name: str, request: pytest.FixtureRequest, images: list[Image.Image]
) -> None:
    """Each image is what it is in a batch of its own; texts keep their guidance."""
    pipeline = request.getfixturevalue(name)
    prompts: list[list[Any]] = [["a ring"], [images[0], "like this"], ["a cross"], [images[1]]]
    together = pipeline.generate_from_parts(prompts, seed=3)
    for index, prompt in enumerate(prompts):
        (alone,) = pipeline.generate_from_parts([prompt], seed=3, first_index=index)
        assert alone.tobytes() == together[index].tobytes()
    (text,) = pipeline.generate(["a ring"], seed=3)
    assert text.tobytes() == together[0].tobytes()
