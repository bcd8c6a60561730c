"""Ways to ask for a description of a picture, for captioning and for RecA's reconstruction flow."""

from importlib.resources import files


def description_prompts() -> list[str]:
    """One prompt per line of the package's data file."""
    text = (files("showo_dist") / "data" / "description_prompts.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]
