"""Config files, inheritance, arguments, round trips and other schemas."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from showo_dist.config import TrainConfig, load, load_file, to_yaml
from showo_dist.config.hints import known_keys
from tests.config.conftest import CONFIGS


@dataclass(kw_only=True)
class Codebook:
    size: int = 256
    entropy_weight: float = 0.1


@dataclass(kw_only=True)
class Small:
    steps: int = 10
    title: str | None = None
    names: list[str] = field(default_factory=list)
    codebook: Codebook = field(default_factory=Codebook)

    def check(self) -> None:
        if self.steps > self.codebook.size:
            raise ValueError(
                f"steps = {self.steps}: expected at most codebook.size = {self.codebook.size}"
            )


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_another_schema() -> None:
    config = load(["codebook.entropy_weight='1e-3'", "names=[a, b]"], Small)
    assert config == Small(names=["a", "b"], codebook=Codebook(entropy_weight=1e-3))
    with pytest.raises(
        ValueError, match=r"codebook\.sise = 3: unknown key; nearest known: codebook\.size"
    ):
        load(["codebook.sise=3"], Small)
    with pytest.raises(ValueError, match="steps = 1000: expected at most"):
        load(["steps=1000"], Small)
    assert load(["steps=1000"], Small, check=False).steps == 1000


def test_later_values_win(tmp_path: Path) -> None:
    write(
        tmp_path,
        first="steps: 1\nnames: [x]\ncodebook: {size: 16, entropy_weight: 0.5}",
        second="steps: 2\ncodebook: {size: 32}",
        own="base: [first.yaml, second.yaml]\ncodebook: {size: 64}",
    )
    config = load([f"config={tmp_path}/own.yaml", "steps=4", "steps=5"], Small)
    assert config == Small(steps=5, names=["x"], codebook=Codebook(size=64, entropy_weight=0.5))


def test_bases_are_found_beside_their_file(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(tmp_path, root="steps: 7")
    write(tmp_path / "a", middle="base: ../root.yaml")
    write(tmp_path / "a" / "b", leaf="base: ../middle.yaml\nnames: [y]")
    assert load_file(tmp_path / "a" / "b" / "leaf.yaml", Small) == Small(steps=7, names=["y"])


def test_the_same_base_twice(tmp_path: Path) -> None:
    write(
        tmp_path,
        root="steps: 7",
        a="base: root.yaml",
        b="base: root.yaml",
        own="base: [a.yaml, b.yaml]",
    )
    assert load_file(tmp_path / "own.yaml", Small).steps == 7


BAD_FILES = {
    "circle": ({"own": "base: other.yaml", "other": "base: own.yaml"}, "inherits from itself"),
    "missing base": ({"own": "base: nowhere.yaml"}, "nowhere.yaml: no such config file"),
    "not YAML": ({"own": "a: [1, 2"}, "own.yaml: not valid YAML"),
    "key given twice": ({"own": "steps: 1\nsteps: 2"}, "own.yaml: not valid YAML"),
    "a list": ({"own": "- 1\n- 2"}, "own.yaml: expected sections of keys"),
    "a number as base": ({"own": "base: 5"}, "own.yaml: base = 5: expected a file or a list"),
    "a mapping as base": ({"own": "base: {a: b}"}, "own.yaml: base = {'a': 'b'}: expected a file"),
    "numbers as bases": ({"own": "base: [5]"}, "own.yaml: base = [5]: expected a file or a list"),
    "5,000 digits": ({"own": f"steps: {'7' * 5000}"}, "own.yaml: not valid YAML"),
    "nested deeply": ({"own": f"names: {'[' * 5000}"}, "own.yaml: not valid YAML"),
    "broken interpolation": ({"own": "steps: ${"}, "own.yaml: not valid YAML"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    files, expected = BAD_FILES[name]
    write(tmp_path, **files)
    with pytest.raises(ValueError) as caught:
        load_file(tmp_path / "own.yaml", Small)
    assert expected in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_files_that_are_not_utf8_are_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "own.yaml").write_bytes("names: [\xe9]".encode(encoding))
    with pytest.raises(ValueError, match=r"own\.yaml: not UTF-8; save it as UTF-8"):
        load_file(tmp_path / "own.yaml", Small)
    with pytest.raises(ValueError, match=r"argument 'names=\[\\udce9\]': not UTF-8"):
        load([b"names=[\xe9]".decode("utf-8", "surrogateescape")], Small)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"\xef\xbb\xbfsteps: 7\r\nnames: [y]\r\n")
    assert load_file(tmp_path / "own.yaml", Small) == Small(steps=7, names=["y"])


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.yaml: no such config file"):
        load(["config=nothing.yaml"], Small)
    with pytest.raises(ValueError, match="cannot be read"):
        load_file(tmp_path, Small)


@pytest.mark.parametrize(
    "argument", ["steps", "--steps=3", "=3", "a..b=1", ".=1", "names=[a", "[0]=1"]
)
def test_malformed_arguments(argument: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(["steps=1", argument], Small)
    assert argument.partition("=")[0] in str(caught.value)


def test_launcher_argument_and_positional_file(tmp_path: Path) -> None:
    write(tmp_path, own="steps: 3")
    file = str(tmp_path / "own.yaml")
    assert load([file, "--local_rank=1", "names=[z]"], Small) == Small(steps=3, names=["z"])
    assert load(["--local_rank=0", f"config={file}"], Small).steps == 3
    with pytest.raises(ValueError, match="one config file at most"):
        load([file, f"config={file}"], Small)


@given(
    st.text(min_size=1).filter(
        lambda text: text not in ("null", "~", "???") and text[0] not in "'\"$\\"
    )
)
def test_text_arguments_are_taken_literally(text: str) -> None:
    assume("${" not in text and text[0] != "~")  # ~ is a home folder
    assert load([f"title={text}"], Small).title == text


def test_quotes_and_null_of_text_arguments() -> None:
    for argument in ("prompt='a b'", 'prompt="a b"', "prompt=a b"):
        assert load([argument], TrainConfig, check=False).inference.prompt == "a b"
    assert (
        load(
            ["model.showo.llm_model_path=null"], TrainConfig, check=False
        ).model.showo.llm_model_path
        is None
    )


@pytest.mark.parametrize(
    "text", ["'a' and 'b'", '"a" or "b"', "costs ${5} today", "${oc.env:HOME}", "a ${"]
)
def test_prompts_are_taken_as_they_stand(text: str) -> None:
    config = load([f"prompt={text}"], TrainConfig, check=False)
    assert config.inference.prompt == text


def test_placeholders_are_no_defaults(tmp_path: Path) -> None:
    """OmegaConf's mark of a missing value; merging would leave the default in its place."""
    write(tmp_path, own="steps: 3\ncodebook: {size: '???'}")
    with pytest.raises(ValueError, match=r"codebook\.size = \?\?\?: a placeholder; give a value"):
        load([f"config={tmp_path}/own.yaml"], Small)
    with pytest.raises(ValueError, match=r"steps = \?\?\?"):
        load(["steps=???"], Small)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("codebook=[1]", "codebook"),
        ("title=${", "title=${: "),
        ("names=${", "names=${: "),
        ("codebook=3", "codebook = 3: expected a section"),
    ],
)
def test_values_that_cannot_be_merged_are_named(tmp_path: Path, argument: str, words: str) -> None:
    write(tmp_path, own="names: [a]\ncodebook: {size: 3}")
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        load([f"config={tmp_path}/own.yaml", argument], Small)
    assert "\n" not in str(caught.value)


def test_a_top_level_key_may_name_another_key(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="training: {cond_dropout_prob: 0.25}",
        own="base: base.yaml\nguidance_scale: ${training.cond_dropout_prob}",
    )
    config = load_file(tmp_path / "own.yaml", TrainConfig, check=False)
    assert config.training.guidance_scale == 0.25


def test_top_level_key_overrides_the_section_of_an_earlier_layer(tmp_path: Path) -> None:
    write(tmp_path, base="guidance_scale: 2", own="base: base.yaml\ntraining: {guidance_scale: 3}")
    file = tmp_path / "own.yaml"
    assert load_file(file, TrainConfig, check=False).training.guidance_scale == 3
    assert (
        load_file(file, TrainConfig, ["guidance_scale=4"], check=False).training.guidance_scale == 4
    )


@pytest.mark.parametrize("name", ["showo/showo_demo", "reca/showo_reca_blur8", "mini/pretrain"])
def test_resolved_yaml_round_trip(name: str, tmp_path: Path) -> None:
    config = load_file(CONFIGS / f"{name}.yaml", TrainConfig, check=False)
    text = to_yaml(config)
    write(tmp_path, resolved=text)
    assert load_file(tmp_path / "resolved.yaml", TrainConfig, check=False) == config
    assert "${" not in text


def test_defaults_are_those_of_the_dataclass() -> None:
    assert load([], TrainConfig, check=False) == TrainConfig()


def test_known_keys_are_dotted_leaves() -> None:
    assert known_keys(Small) == (
        "steps",
        "title",
        "names",
        "codebook.size",
        "codebook.entropy_weight",
    )


def test_home_folders_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load(
        [
            *("experiment.output_dir=~/runs/a", "model.showo.tokenizer_path=~/text"),
            "dataset.params.train_t2i_shards_path_or_url=[~/a.tar, {urls: ~/b.tar, weight: 1}]",
            "inference.prompt=~/ is a folder",
        ],
        check=False,
    )
    assert config.experiment.output_dir == "/home/me/runs/a"
    assert config.model.showo.tokenizer_path == "/home/me/text"
    paths = config.dataset.params.train_t2i_shards_path_or_url
    assert paths == ["/home/me/a.tar", {"urls": "/home/me/b.tar", "weight": 1}]
    assert config.inference.prompt == "~/ is a folder"


def test_an_unknown_home_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"data.cache_dir = '~nosuchuser/x': ~nosuchuser is no user"
    ):
        load(["data.cache_dir=~nosuchuser/x"], check=False)


@pytest.mark.parametrize(
    "line", ["  name: ${oc.env:HOME}", "base: ../other.yaml", '"base" : ../other.yaml']
)
def test_a_config_that_comes_with_weights_is_plain(tmp_path: Path, line: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"experiment:\n  project: a\n{line}\n")
    (tmp_path.parent / "other.yaml").write_text("experiment: {project: b}\n")
    load_file(path, TrainConfig, check=False)
    with pytest.raises(ValueError, match=rf"{path}(:3)?: .*plain values only"):
        load_file(path, TrainConfig, check=False, foreign=True)
