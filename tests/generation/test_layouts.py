"""One image and one text give the sequences of training; everything else extends them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from showo_dist.generation import Pipeline, assistant, user
from showo_dist.generation.answer import answer
from showo_dist.generation.conversation import flatten, flatten_by_template
from showo_dist.sequences import Sequence, builders
from showo_dist.sequences.masking import IGNORE, MaskedCodes
from showo_dist.sequences.text import SYSTEM_PROMPT, question_prompt
from showo_kernels import Visibility
from tests.sequences.test_chat import TEMPLATES, encoder


def _same(one: Sequence, other: Sequence) -> None:
    """Same tokens, attention visibility and positions; labels are not compared."""
    assert torch.equal(one.ids_L, other.ids_L)
    visible = [Visibility.from_documents([s.spans]).dense() for s in (one, other)]
    assert torch.equal(*visible)
    positions = [
        torch.arange(len(s)) if s.position_ids_L is None else s.position_ids_L for s in (one, other)
    ]
    assert torch.equal(*positions)
    features = [s.features_SC is None for s in (one, other)]
    assert features[0] == features[1]
    if one.features_SC is not None and other.features_SC is not None:
        torch.testing.assert_close(one.features_SC, other.features_SC)
        rows = [
            s.feature_start + torch.arange(len(one.features_SC))
            if s.feature_rows_S is None
            else s.feature_rows_S
            for s in (one, other)
        ]
        assert torch.equal(*rows)


ROUNDS = [("human", "<image>\nwhat is it?"), ("gpt", "a ring"), ("human", "which colour?")]


def _turns(image: Image.Image) -> list:
    return [user(image, "what is it?"), assistant("a ring"), user("which colour?")]


def test_rounds_about_codes(pipeline: Pipeline, images: list[Image.Image]) -> None:
    (codes_N,) = pipeline.encode(images[:1])
    ids, supervised = pipeline.text.conversation(ROUNDS)
    wanted = builders.mmu_llava(ids, supervised, codes_N, 10_000, pipeline.vocabulary)
    (found,) = pipeline.question_sequences([_turns(images[0])])
    _same(found, wanted)


def test_rounds_about_features(clip_pipeline: Pipeline, images: list[Image.Image]) -> None:
    (features_SC,) = clip_pipeline.encode_for_questions(images[:1])
    ids, supervised = clip_pipeline.text.conversation(ROUNDS)
    system = clip_pipeline.text.encode(SYSTEM_PROMPT)
    wanted = builders.mmu_clip(
        ids, supervised, system, torch.as_tensor(features_SC), 10_000, clip_pipeline.vocabulary
    )
    (found,) = clip_pipeline.question_sequences([_turns(images[0])])
    _same(found, wanted)


def test_the_published_question(pipeline: Pipeline, images: list[Image.Image]) -> None:
    """``mmu soi IMAGE eoi sot "USER: \\n" + question + " ASSISTANT:"``."""
    demo = replace(pipeline, question_style="demo")
    (codes_N,) = demo.encode(images[:1])
    text = demo.text.encode(question_prompt("what is it?"))
    wanted = builders.mmu_caption(text, codes_N, 10_000, demo.vocabulary)
    (found,) = demo.question_sequences([[user(images[0], "what is it?")]])
    assert torch.equal(found.ids_L, wanted.ids_L[:-1])
    assert [span.length for span in found.spans] == [19, len(text) + 1]


def _blank(pipeline: Pipeline) -> MaskedCodes:
    codes_N = torch.full((16,), pipeline.vocabulary.codebook)
    return MaskedCodes(codes_N, torch.full((16,), IGNORE), None, 1.0)


@pytest.mark.parametrize("name", ["pipeline", "clip_pipeline"])
def test_an_image_and_a_text_are_reca(
    name: str, request: pytest.FixtureRequest, images: list[Image.Image]
) -> None:
    pipeline: Pipeline = request.getfixturevalue(name)
    text = "describe the image"
    (condition,) = map(torch.as_tensor, pipeline.encode_as_conditions(images[:1]))
    build = builders.recon_clip if pipeline.clip else builders.recon_vq
    wanted = build(pipeline.text.encode(text), condition, _blank(pipeline), pipeline.vocabulary)
    (found,) = pipeline.image_sequences([[images[0], text]])
    _same(found, wanted)


def test_text_alone_is_text_to_image(pipeline: Pipeline) -> None:
    for text in ("a red circle", "", "word " * 40):
        wanted = builders.t2i_prompt(
            pipeline.text.encode(text), _blank(pipeline).inputs_N, 24, pipeline.vocabulary
        )
        (found,) = pipeline.image_sequences([[text]])
        _same(found, wanted)


def test_images_in_the_middle(pipeline: Pipeline, images: list[Image.Image]) -> None:
    v = pipeline.vocabulary
    (found,) = pipeline.question_sequences([[user("look:", images[0], "or", images[1])]])
    kinds = [(span.bidirectional, span.length) for span in found.spans]
    assert [kind for kind, _ in kinds] == [False, True, False, True, False]
    assert [length for kind, length in kinds if kind] == [18, 18]
    ids = found.ids_L.tolist()
    assert ids[0] == v.mmu and ids.count(v.soi) == ids.count(v.eoi) == 2
    codes_BN = pipeline.encode(images[:2])
    first = ids.index(v.soi) + 1
    assert ids[first : first + 16] == (codes_BN[0] + v.image_offset).tolist()
    texts = [i for i in ids if i < v.text]
    assert pipeline.text.decode(texts) == "USER: look:or ASSISTANT:"


def test_earlier_turns_do_not_see_later_images(
    clip_pipeline: Pipeline, images: list[Image.Image]
) -> None:
    """The first image's features are global, as trained; later ones are not."""
    turns = [user(images[0], "what?"), assistant("a ring"), user(images[1], "and this?")]
    (short,) = clip_pipeline.question_sequences([turns[:1]])
    (long,) = clip_pipeline.question_sequences([turns])
    seen_LL = Visibility.from_documents([long.spans]).dense()
    begun = len(short)
    assert torch.equal(seen_LL[:begun, :begun], Visibility.from_documents([short.spans]).dense())
    assert not seen_LL[:begun, begun:].any()


def test_flatten_joins_texts() -> None:
    turns = [user("a", "", "b"), assistant("c"), user("d")]
    wanted = ["USER: ab ASSISTANT: c</s>USER: d ASSISTANT:"]
    assert flatten(turns, "llava", "</s>") == wanted


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["pipeline", "clip_pipeline"])
def test_a_chat_template_at_inference_is_that_of_training(
    name: str,
    template: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    images: list[Image.Image],
) -> None:
    text = encoder(tmp_path, TEMPLATES[template])
    pipeline = replace(request.getfixturevalue(name), text=text)
    (image,) = map(torch.as_tensor, pipeline.encode_for_questions(images[:1]))
    ids, supervised = text.conversation(ROUNDS)
    voc = pipeline.vocabulary
    if pipeline.clip:
        system = text.encode(SYSTEM_PROMPT)
        wanted = builders.mmu_clip(ids, supervised, system, image, 10_000, voc)
    else:
        wanted = builders.mmu_llava(ids, supervised, image, 10_000, voc)
    (found,) = pipeline.question_sequences([_turns(images[0])])
    _same(found, wanted)


def test_images_in_the_middle_of_a_chat_template(
    pipeline: Pipeline, tmp_path: Path, images: list[Image.Image]
) -> None:
    chat = replace(pipeline, text=encoder(tmp_path, TEMPLATES["thinking"]))
    turns = [
        user(images[0], "look:", images[1], "or", images[2]),
        assistant("a", images[3]),
        user("d"),
    ]
    assert chat.text.template is not None
    parts = flatten_by_template(turns, chat.text.template)
    assert [part for part in parts if not isinstance(part, str)] == images[:4]
    assert [part for part in parts if isinstance(part, str)] == [
        "<|im_start|>user\nlook:",
        "or",
        "<|im_end|>\n<|im_start|>assistant\na",
        "<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ]


def test_an_answer_ends_with_the_templates_token(
    pipeline: Pipeline, tmp_path: Path, images: list[Image.Image]
) -> None:
    chat = replace(pipeline, text=encoder(tmp_path, TEMPLATES["chatml"]))
    assert chat.text.template is not None
    prompts = chat.question_sequences([[user(images[0], "what is it?")]])
    (free,) = answer(chat.model, chat.vocabulary, prompts, max_new_tokens=8, end=-1)
    last = next(n for n, token in enumerate(free) if n and token not in free[:n])
    chat.text.template.end = free[last]
    wanted = chat.text.decode(free[:last]).strip()
    assert chat.ask(images[:1], ["what is it?"], max_new_tokens=8) == [wanted]


def test_the_recorded_template_is_used(
    checkpoint: Path, encoders: Path, tmp_path: Path, images: list[Image.Image]
) -> None:
    """``config.json`` alone, as in an export, decides; a tokenizer without a template is refused."""
    folder = tmp_path / "checkpoint-000001"
    shutil.copytree(checkpoint, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**values, "settings": {"dataset.chat_template": True}})
    )
    with pytest.raises(ValueError, match=r"chat_template = true: .*it has none"):
        Pipeline.load(folder, device="cpu")
