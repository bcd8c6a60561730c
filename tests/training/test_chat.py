"""A run with a chat template: checkpoint, export and import record it, and a question is laid out by it."""

from pathlib import Path

from PIL import Image
from transformers import AutoTokenizer

from showo_dist.export.folders import export, import_model
from showo_dist.generation import Pipeline, user
from showo_dist.models.weights.pretrained import read_chat_template
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
        assert read_chat_template(folder)
    pipeline = Pipeline.load(checkpoint, device="cpu")
    image = Image.new("RGB", (64, 64))
    (found,) = pipeline.question_sequences([[user(image, "what is shown?")]])
    ids = [token for token in found.ids_L.tolist() if token < pipeline.vocabulary.text]
    assert pipeline.text.decode(ids) == "(what is shown?)"
