"""The command ``showo-dist understand``: questions about images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from showo_dist.generation.conversation import Part, Turn, assistant, user
from showo_dist.generation.output import Album
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.request import (
    Failures,
    Request,
    image_paths,
    open_parts,
    parser,
    read_parts,
    refuse_beside,
    split_texts,
)
from showo_dist.logging.progress import progress_display

_SHOWN_PER_LINE = 400  # characters of an answer on a contact sheet


@dataclass
class _Dialogue:
    """A conversation to hold.

    Attributes:
        about: settings to record with every answer.
        shown: images and texts before the first question.
        questions: all questions, in order.
        turns: the turns so far.
    """

    about: dict[str, Any]
    shown: list[Part]
    questions: list[str]
    turns: list[Turn] = field(default_factory=list)

    def ask(self) -> None:
        """Add the next question to the turns; the first one comes after what is shown."""
        first = [] if self.turns else self.shown
        self.turns.append(user(*first, self.questions[len(self.turns) // 2]))

    @property
    def image(self) -> Image.Image | None:
        return next((part for part in self.shown if isinstance(part, Image.Image)), None)


def main_understand(argv: Sequence[str]) -> int:
    """Ask questions about images: each about each, all in one conversation, or about all images at once."""
    made = parser("understand", "Ask questions about images.")
    made.add_argument("--image", action="append", help="file or folder; may be repeated")
    made.add_argument(
        "--question", action="append", help="may be repeated, or hold several: 'a *** b'"
    )
    made.add_argument(
        "--rounds", action="store_true", help="the questions follow each other in one conversation"
    )
    made.add_argument(
        "--together", action="store_true", help="all images at the start of one conversation"
    )
    made.add_argument("--parts", help="JSON lines of prompts with images among the text")
    made.add_argument("--max-new-tokens", type=int, help="longest answer; default 100")
    made.add_argument("--top-k", type=int, help="sample among the k most likely; default 1")
    made.add_argument("--temperature", type=float, dest="answer_temperature", help="of sampling")
    made.add_argument("--seeds", type=int, nargs="+", help="every answer once per seed; default 0")
    request = Request.read("understand", made, argv)
    refuse_beside(request.arguments, "parts", "image", "question", "rounds", "together")
    failures = Failures()
    dialogues = (
        _from_parts(request, failures) if request.arguments.parts else _asked(request, failures)
    )
    pipeline = request.load()
    inference = request.config.inference
    names = ("max_new_tokens", "top_k", "temperature")
    album = request.album("answers.jsonl", {name: getattr(inference, name) for name in names})
    total = len(dialogues) * len(request.seeds)
    progress = progress_display("understand", total, unit="conversation")
    try:
        for number, seed in enumerate(request.seeds):
            for start in range(0, len(dialogues), request.batch):
                part = dialogues[start : start + request.batch]
                _answer_all(part, pipeline, request, album, seed, start)
                progress.log(number * len(dialogues) + start + len(part), {})
    finally:
        progress.close()
        album.close()
    Console(soft_wrap=True).print(f"answers in {album.folder}", markup=False, highlight=False)
    return failures.exit_code


def _answer_all(
    dialogues: list[_Dialogue],
    pipeline: Pipeline,
    request: Request,
    album: Album,
    seed: int,
    first: int,
) -> None:
    """Answer all questions of some conversations; the model answers one of each at a time, in one batch.

    Args:
        dialogues: the conversations.
        pipeline, request, album: models, settings, results.
        seed: of the sampling.
        first: index of the first conversation.
    """
    inference = request.config.inference
    for dialogue in dialogues:
        dialogue.turns = []
    while unfinished := [d for d in dialogues if len(d.turns) // 2 < len(d.questions)]:
        for dialogue in unfinished:
            dialogue.ask()
        answers = pipeline.reply(
            [dialogue.turns for dialogue in unfinished],
            inference.max_new_tokens,
            request.batch,
            top_k=inference.top_k,
            temperature=inference.temperature,
            seed=seed,
            place=(first, len(unfinished[0].turns) // 2),
        )
        for dialogue, words in zip(unfinished, answers, strict=True):
            dialogue.turns.append(assistant(words))
    for dialogue in dialogues:
        _write(dialogue, album, seed)


def _write(dialogue: _Dialogue, album: Album, seed: int) -> None:
    """Print and record the answers of a conversation."""
    answers = [str(turn.parts[0]) for turn in dialogue.turns[1::2]]
    lines = []
    for number, (question, words) in enumerate(zip(dialogue.questions, answers, strict=True)):
        album.write(
            {**dialogue.about, "round": number, "question": question, "answer": words, "seed": seed}
        )
        print(f"{dialogue.about['image']}\n  {question}\n  {words}", flush=True)
        lines += [f"? {question}", words[:_SHOWN_PER_LINE] or "(nothing)"]
    if dialogue.image is not None:
        album.show(dialogue.image, "\n".join(lines))


def _asked(request: Request, failures: Failures) -> list[_Dialogue]:
    """Make conversations of the images and questions of the options or the published keys."""
    arguments, inference = request.arguments, request.config.inference
    named = arguments.image or [inference.mmu_image_root or inference.image_path]
    if named == [None]:
        raise ValueError("--image is missing")
    questions = split_texts(arguments.question or [inference.question or ""])
    if not all(questions):
        raise ValueError("--question is missing, or one is empty")
    read = [(path, failures.image(path)) for path in image_paths(named)]
    images = [(path, image) for path, image in read if image is not None]
    groups = [images] if arguments.together and images else [[item] for item in images]
    rounds = [questions] if arguments.rounds else [[question] for question in questions]
    return [_dialogue(group, asked) for group in groups for asked in rounds]


def _dialogue(images: list[tuple[Path, Image.Image]], questions: list[str]) -> _Dialogue:
    names = ", ".join(str(path) for path, _ in images)
    return _Dialogue({"image": names}, [image for _, image in images], questions)


def _from_parts(request: Request, failures: Failures) -> list[_Dialogue]:
    """Make one conversation per line of ``--parts``; the text after the last image is its question."""
    dialogues = []
    for row in read_parts(request.arguments.parts):
        try:
            parts = open_parts(row)
        except ValueError as error:
            failures.add(error)
            continue
        names = ", ".join(value for kind, value in row if kind == "image")
        last = parts.pop() if isinstance(parts[-1], str) else ""
        dialogues.append(_Dialogue({"image": names}, parts, [str(last)]))
    return dialogues
