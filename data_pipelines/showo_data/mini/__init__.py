"""The mini world: images of coloured shapes, texts about them, and a checker that reads the images."""

from showo_data.mini.checker import Detected, Score, read_image, score
from showo_data.mini.drawing import draw, patchwork
from showo_data.mini.language import caption, plain_text, questions
from showo_data.mini.prompts import TAGS, prompts
from showo_data.mini.world import COLOURS, RESOLUTION, SHAPES, Object, Scene, scene

__all__ = [
    "COLOURS",
    "RESOLUTION",
    "SHAPES",
    "TAGS",
    "Detected",
    "Object",
    "Scene",
    "Score",
    "caption",
    "draw",
    "patchwork",
    "plain_text",
    "prompts",
    "questions",
    "read_image",
    "scene",
    "score",
]
