"""Talking with a model in texts and pictures: it answers, or paints the next picture."""

from PIL import Image

from showo_dist.generation.dialogue import Part, Turn, assistant, user
from showo_dist.generation.paint import PaintOptions
from showo_dist.generation.pipeline import Pipeline


class Conversation:
    """Turns of a user and a model; everything said so far is read anew for each of the model's turns.

    Published models were trained on one picture and questions about it, and on painting from a text or from
    one picture and a text. All else works, and is what the model makes of it.

    Args:
        pipeline: the model.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.turns: list[Turn] = []

    def ask(self, *parts: Part, max_new_tokens: int = 100, top_k: int | None = 1) -> str:
        """Say something, in texts and pictures, and get an answer in words."""
        self.turns.append(user(*parts))
        (words,) = self.pipeline.reply([self.turns], max_new_tokens, top_k=top_k)
        self.turns.append(assistant(words))
        return words

    def paint(
        self, *parts: Part, options: PaintOptions | None = None, seed: int = 0
    ) -> Image.Image:
        """Say something, in texts and pictures, and get a picture.

        The model reads all texts and pictures so far in their order, without the marks of who said them. A
        model that reads pictures as CLIP features paints without guidance once there is a picture.

        Raises:
            ValueError: ``options`` ask for guidance where there is none.
        """
        self.turns.append(user(*parts))
        said = [part for turn in self.turns for part in turn.parts]
        (picture,) = self.pipeline.paint_parts([said], options, seed, first_index=len(self.turns))
        self.turns.append(assistant(picture))
        return picture
