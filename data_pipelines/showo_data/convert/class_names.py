"""Names of the ImageNet classes, from one of the files that come with the data set or with code for it."""

import json
import re
from pathlib import Path

_LINE = re.compile(r"(\w+)(?::\s*|\s+)(\S.*)")


def read_class_names(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Class → its synonyms, the usual one first. A class is its folder's name, or its number in their order.

    Three forms are read:

    * ``n01440764 tench, Tinca tinca`` per line (``LOC_synset_mapping.txt``, ``synset_words.txt``);
    * ``0: tench`` per line, classes by number;
    * JSON ``{"0": ["n01440764", "tench"], …}``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has none of these forms.
    """
    text = Path(path).read_text(encoding="utf-8")
    pairs = _from_json(text) if text.lstrip().startswith("{") else _from_lines(text)
    if not pairs:
        raise ValueError(
            f"class names {path}: expected lines such as 'n01440764 tench, Tinca tinca' or '0: tench', "
            'or JSON {"0": ["n01440764", "tench"], ...}'
        )
    return {name: _synonyms(words) for name, words in pairs.items()}


def _from_json(text: str) -> dict[str, str]:
    try:
        return {str(wnid): str(words) for wnid, words in json.loads(text).values()}
    except (json.JSONDecodeError, ValueError, TypeError):
        return {}


def _from_lines(text: str) -> dict[str, str]:
    matches = [_LINE.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
    return {match[1]: match[2] for match in matches if match} if all(matches) else {}


def _synonyms(words: str) -> tuple[str, ...]:
    return tuple(word.strip().replace("_", " ") for word in words.split(",") if word.strip())
