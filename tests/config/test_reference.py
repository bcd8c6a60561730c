"""docs/configuration.md agrees with the schema."""

import dataclasses

from showo_dist.config import TrainConfig
from showo_dist.config.hints import fields_of, known_keys
from showo_dist.config.reference import field_docs, tables
from showo_dist.config.schema import PUBLISHED_TOP_LEVEL_KEYS
from tests.config.conftest import ROOT

PAGE = (ROOT / "docs" / "configuration.md").read_text()


def sections(schema: type) -> list[type]:
    hints = fields_of(schema).values()
    nested = [hint for hint in hints if isinstance(hint, type) and dataclasses.is_dataclass(hint)]
    return [schema, *(section for hint in nested for section in sections(hint))]


def test_tables_are_current() -> None:
    assert PAGE.endswith("## Keys\n\n" + tables(TrainConfig)), (
        "docs/configuration.md is out of date: replace the part after '## Keys' with the output of "
        "python -m showo_dist.config.reference"
    )


def test_every_key_has_a_meaning() -> None:
    for section in sections(TrainConfig):
        leaves = {
            name for name, hint in fields_of(section).items() if not dataclasses.is_dataclass(hint)
        }
        assert leaves <= set(field_docs(section)), section


def test_top_level_keys_are_documented_and_point_to_known_keys() -> None:
    for old, new in PUBLISHED_TOP_LEVEL_KEYS.items():
        assert f"| `{old}` | `{new}` |" in PAGE
        assert new in known_keys(TrainConfig)
