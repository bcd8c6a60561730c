"""The mini world: images of coloured shapes, texts about them, and a checker that reads the images."""

from showo_data.mini.checker import Detected, Score, read_image, score
from showo_data.mini.drawing import draw, patchwork
from showo_data.mini.edits import EDIT_KINDS, EditScore, SceneEdit, sample_edit, score_edit
from showo_data.mini.language import caption, plain_text, questions
from showo_data.mini.prompts import TAGS, prompts
from showo_data.mini.world import COLOURS, RESOLUTION, SHAPES, Object, Scene, scene

__all__ = [
    "COLOURS",
    "EDIT_KINDS",
    "RESOLUTION",
    "SHAPES",
    "TAGS",
    "Detected",
    "EditScore",
    "Object",
    "Scene",
    "SceneEdit",
    "Score",
    "caption",
    "draw",
    "patchwork",
    "plain_text",
    "prompts",
    "questions",
    "read_image",
    "sample_edit",
    "scene",
    "score",
    "score_edit",
]
