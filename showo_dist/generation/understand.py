"""``showo-dist understand``: answers about images, from the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from showo_dist.generation.conversation import Part, Turn, assistant, user
from showo_dist.generation.inputs import Failures, image_paths, opened, read_parts
from showo_dist.generation.output import Album
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.request import Request, parser, split_texts
from showo_dist.logging.progress import progress_display

_SHOWN_PER_LINE = 400  # characters of an answer on a contact sheet


@dataclass
class _Talk:
    """A conversation: what is shown at its beginning, and the questions still to come."""

    about: dict[str, Any]
    shown: list[Part]
    questions: list[str]
    turns: list[Turn] = field(default_factory=list)

    def ask(self) -> None:
        """The next question joins the turns; what is shown stands before the first."""
        first = [] if self.turns else self.shown
        self.turns.append(user(*first, self.questions[len(self.turns) // 2]))

    @property
    def image(self) -> Image.Image | None:
        return next((part for part in self.shown if isinstance(part, Image.Image)), None)


def main_understand(argv: Sequence[str]) -> int:
    """Ask about images: each question about each image, in rounds, or about all at once."""
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
    made.add_argument("--top-k", type=int, help="draw among the k most likely; default 1")
    made.add_argument("--temperature", type=float, dest="answer_temperature", help="of drawing")
    made.add_argument("--seeds", type=int, nargs="+", help="every answer once per seed; default 0")
    request = Request.read("understand", made, argv)
    failures = Failures()
    talks = _from_parts(request, failures) if request.arguments.parts else _asked(request, failures)
    pipeline = request.load()
    inference = request.config.inference
    names = ("max_new_tokens", "top_k", "temperature")
    album = request.album("answers.jsonl", {name: getattr(inference, name) for name in names})
    progress = progress_display("understand", len(talks) * len(request.seeds), unit="conversation")
    try:
        for number, seed in enumerate(request.seeds):
            for start in range(0, len(talks), request.batch):
                part = talks[start : start + request.batch]
                _hold(part, pipeline, request, album, seed)
                progress.log(number * len(talks) + start + len(part), {})
    finally:
        progress.close()
        album.close()
    Console(soft_wrap=True).print(f"answers in {album.folder}", markup=False, highlight=False)
    return failures.exit_code


def _hold(
    talks: list[_Talk], pipeline: Pipeline, request: Request, album: Album, seed: int
) -> None:
    """Every conversation to its end; the rounds of all go through the model together."""
    inference = request.config.inference
    for talk in talks:
        talk.turns = []
    while going := [talk for talk in talks if len(talk.turns) // 2 < len(talk.questions)]:
        for talk in going:
            talk.ask()
        answers = pipeline.reply(
            [talk.turns for talk in going],
            inference.max_new_tokens,
            request.batch,
            top_k=inference.top_k,
            temperature=inference.temperature,
            seed=seed,
        )
        for talk, words in zip(going, answers, strict=True):
            talk.turns.append(assistant(words))
    for talk in talks:
        _write(talk, album, seed)


def _write(talk: _Talk, album: Album, seed: int) -> None:
    answers = [str(turn.parts[0]) for turn in talk.turns[1::2]]
    lines = []
    for number, (question, words) in enumerate(zip(talk.questions, answers, strict=True)):
        album.write(
            {**talk.about, "round": number, "question": question, "answer": words, "seed": seed}
        )
        print(f"{talk.about['image']}\n  {question}\n  {words}", flush=True)
        lines += [f"? {question}", words[:_SHOWN_PER_LINE] or "(nothing)"]
    if talk.image is not None:
        album.show(talk.image, "\n".join(lines))


def _asked(request: Request, failures: Failures) -> list[_Talk]:
    """The images and questions of the command line or the published keys."""
    arguments, inference = request.arguments, request.config.inference
    named = arguments.image or [inference.mmu_image_root or inference.image_path]
    if named == [None]:
        raise ValueError("--image is missing")
    questions = split_texts(arguments.question or [inference.question or ""])
    if not all(questions):
        raise ValueError("--question is missing, or one is empty")
    read = [(path, failures.image(path)) for path in image_paths(named)]
    images = [(path, image) for path, image in read if image is not None]
    apart = [[item] for item in images]
    groups = [images] if arguments.together and images else apart
    rounds = [questions] if arguments.rounds else [[question] for question in questions]
    return [_talk(group, asked) for group in groups for asked in rounds]


def _talk(images: list[tuple[Path, Image.Image]], questions: list[str]) -> _Talk:
    names = ", ".join(str(path) for path, _ in images)
    return _Talk({"image": names}, [image for _, image in images], questions)


def _from_parts(request: Request, failures: Failures) -> list[_Talk]:
    """One question per line, with images anywhere; what follows the last image counts as its words."""
    talks = []
    for row in read_parts(request.arguments.parts):
        try:
            parts = opened(row)
        except ValueError as error:
            failures.add(error)
            continue
        names = ", ".join(value for kind, value in row if kind == "image")
        last = parts.pop() if isinstance(parts[-1], str) else ""
        talks.append(_Talk({"image": names}, parts, [str(last)]))
    return talks
