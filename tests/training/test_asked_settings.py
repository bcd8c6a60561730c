"""What a model was trained with goes with its weights: in a checkpoint, an export and an import of that."""

from pathlib import Path

import torch
from PIL import Image
from transformers import AutoTokenizer

from showo_dist.export.folders import export, import_model
from showo_dist.generation import Pipeline, user
from showo_dist.generation.conversation import Edit
from showo_dist.generation.networks import read_model_config
from showo_dist.models.weights.pretrained import read_settings
from showo_dist.sequences.text import SYSTEM_PROMPT
from tests.training.conftest import TinyWorld, train

TEMPLATE = (
    "{% for m in messages %}{{ '(' if m.role == 'user' else ' ' }}{{ m.content }}"
    "{{ ')' if m.role == 'user' else eos_token }}{% endfor %}"
)


def test_the_choice_goes_with_the_weights(tiny_world: TinyWorld, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_world.folder / "text")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "text")
    changes = [f"model.showo.tokenizer_path={tmp_path / 'text'}", "training.max_train_steps=1"]
    run = tmp_path / "run"
    assert train(tiny_world, run, "dataset.chat_template=true", *changes).code == 0
    checkpoint = next(run.glob("checkpoint-*"))
    export(checkpoint, tmp_path / "out")
    import_model(tmp_path / "out", tmp_path / "back")
    for folder in (checkpoint, tmp_path / "out", tmp_path / "back"):
        assert read_settings(folder)["dataset.chat_template"] is True
    pipeline = Pipeline.load(checkpoint, device="cpu")
    image = Image.new("RGB", (64, 64))
    (found,) = pipeline.question_sequences([[user(image, "what is shown?")]])
    ids = [token for token in found.ids_L.tolist() if token < pipeline.vocabulary.text]
    assert pipeline.text.decode(ids) == "(what is shown?)"


def test_an_export_is_asked_as_its_checkpoint(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """A system prompt, another text budget and another style of questions; an export has no config.yaml."""
    run, out = tmp_path / "run", tmp_path / "out"
    changes = [
        "training.max_train_steps=1",
        "dataset.add_system_prompt=true",
        "dataset.preprocessing.max_seq_length=40",
    ]
    assert train(tiny_world, run, *changes).code == 0
    checkpoint = next(run.glob("checkpoint-*"))
    export(checkpoint, out)
    image = Image.new("RGB", (64, 64))
    trained = Pipeline.load(checkpoint, device="cpu")
    config = read_model_config(checkpoint)
    exported = Pipeline.load(
        out,
        device="cpu",
        vq_model=str(config.model.vq_model.vq_model_name),
        tokenizer=str(config.model.showo.tokenizer_path),
    )
    for pipeline in (trained, exported):
        assert pipeline.system_prompt == SYSTEM_PROMPT
    for rows in (
        lambda p: p.question_sequences([[user(image, "what is it?")]]),
        lambda p: p.edit_sequences([Edit(image, "make it red")])[0],
        lambda p: p.image_sequences([["a red circle"]]),
    ):
        (one,), (other,) = rows(trained), rows(exported)
        assert torch.equal(one.ids_L, other.ids_L)
        assert one.spans == other.spans and str(one.position_ids_L) == str(other.position_ids_L)
