"""The text ids of any tokenizer, our tokens behind them, and tables that start from a language model's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from showo_dist.config import TrainConfig, load
from showo_dist.config.model import ShowoConfig
from showo_dist.models.weights.start import load_initial
from showo_dist.sequences import TextEncoder, Vocabulary, pack
from showo_dist.sequences.builders import lm, t2i
from showo_dist.sequences.masking import MaskedCodes
from tests.families import FAMILIES, llm_config

# Special tokens of a family's tokenizer by their roles, chat tokens, and the two ends that Show-o then uses.
TOKENIZERS: dict[str, tuple[dict[str, str], list[str], tuple[str, str]]] = {
    "phi": (
        {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
        [],
        ("<|endoftext|>", "<|endoftext|>"),
    ),
    "llama3": (
        {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"},
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        ("<|begin_of_text|>", "<|end_of_text|>"),
    ),
    "qwen2.5": (
        {"eos": "<|im_end|>", "pad": "<|endoftext|>"},
        ["<|im_start|>"],
        ("<|endoftext|>", "<|endoftext|>"),
    ),
    "gemma": (
        {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>"},
        ["<start_of_turn>"],
        ("<bos>", "<eos>"),
    ),
    "no bos": ({"eos": "</s>"}, [], ("</s>", "</s>")),
}
WORDS = ["USER: what is shown? ASSISTANT: a red circle beside two blue squares"] * 4


def saved_tokenizer(folder: Path, roles: dict[str, str], chat: list[str]) -> str:
    """A byte-level tokenizer with these special tokens, the chat tokens behind all others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(dict.fromkeys(roles.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    named: dict[str, Any] = {f"{role}_token": token for role, token in roles.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    fast.add_special_tokens({"additional_special_tokens": chat})
    fast.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_both_ends_are_the_tokenizers_own(tmp_path: Path, name: str) -> None:
    roles, chat, (start, end) = TOKENIZERS[name]
    path = saved_tokenizer(tmp_path, roles, chat)
    known = PreTrainedTokenizerFast.from_pretrained(path).get_vocab()
    text = TextEncoder(path, len(known) + 7)  # a padded table
    vocabulary = text.vocabulary(len(known) + 7, 16)
    assert (text.bos, text.eos) == (vocabulary.bos, vocabulary.eos) == (known[start], known[end])
    assert vocabulary.pad == len(known) + 7 and vocabulary.mask == vocabulary.pad + 10 + 16
    ids, supervised = text.conversation([("human", "what is shown?"), ("gpt", "a red circle")])
    assert ids[-1] == known[end] and supervised[-1] and not supervised[0]
    assert ids.count(known[end]) == 1
    assert text.decode(ids) == "USER: what is shown? ASSISTANT: a red circle"
    image = MaskedCodes(torch.arange(4), torch.arange(4), None, 1.0)
    words = text.encode("a red circle")
    rows = [t2i(words, image, 24, vocabulary), lm(words, 24, vocabulary)]
    batch = pack(rows, pad_id=vocabulary.pad)
    assert batch.ids_N.tolist()[1] == known[start]  # behind the task token
    assert known[end] in rows[1].ids_L.tolist() and int(batch.ids_N.max()) < vocabulary.size


def test_ids_beyond_the_text_rows_are_refused(tmp_path: Path) -> None:
    """Chat tokens count, and ids may have gaps."""
    path = saved_tokenizer(tmp_path, *TOKENIZERS["llama3"][:2])
    last = max(PreTrainedTokenizerFast.from_pretrained(path).get_vocab().values())
    TextEncoder(path, last + 1)
    with pytest.raises(ValueError, match=f"llm_vocab_size = {last}: .* has {last + 1} tokens"):
        TextEncoder(path, last)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    path = saved_tokenizer(tmp_path, {"unk": "<unk>"}, [])
    with pytest.raises(ValueError, match=r"no <\|endoftext\|> token and no eos token"):
        TextEncoder(path, 400)


def test_the_size_of_the_table_is_worked_out() -> None:
    config = load(["model.showo.llm_vocab_size=151665"], check=False)
    assert config.model.showo.rows == 151665 + 10 + 8192 + 1
    assert load([], check=False).model.showo.rows == 58498
    with pytest.raises(ValueError, match="vocab_size = 58498: expected 159868"):
        load(["model.showo.llm_vocab_size=151665", "model.showo.vocab_size=58498"])


TEXT, TABLE = 40, 44  # ids of the tokenizer, rows of the language model's padded table


def start_from(folder: Path) -> TrainConfig:
    """A run that starts from a language model."""
    config = TrainConfig()
    config.model.showo = ShowoConfig(
        llm_model_path=str(folder), llm_vocab_size=TEXT, codebook_size=8
    )
    config.training.mixed_precision = "fp32"
    return config


def saved_language_model(folder: Path, family: str) -> torch.nn.Module:
    """A tiny random one, with tied tables where the family ties them."""
    torch.manual_seed(0)
    fields = {"pad_token_id": None, **llm_config(family), "vocab_size": TABLE}
    config = AutoConfig.for_model(**fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_keeps_its_logits(tmp_path: Path, family: str) -> None:
    """Text alone, shorter than any window: Show-o starts as the language model that it was."""
    language = saved_language_model(tmp_path, family)
    model = load_initial(start_from(tmp_path), torch.device("cpu"))[0].eval()
    ids = [5, 9, 2, 31]
    table, head = model.embeddings.weight, model.head.weight
    old = language.get_input_embeddings().weight, language.get_output_embeddings().weight
    assert len(table) == TEXT + 10 + 8 + 1
    kept = TABLE if family == "phi" else TEXT
    for new, rows in zip((table, head), old, strict=True):
        assert torch.equal(new[:kept], rows[:kept])
        assert not torch.equal(new[TEXT:TABLE], rows[TEXT:]) or family == "phi"
        assert len(new[kept:].unique(dim=0)) == len(new) - kept, "new rows are drawn one by one"
    if family == "phi":  # it gets norms on q and k
        return
    batch = pack([lm(ids, 9, Vocabulary(TEXT, 8, bos=0))], pad_id=TEXT)
    tokens = batch.ids_N[None]
    with torch.no_grad():
        found = model(batch, logit_rows=torch.arange(tokens.shape[1]))[:, :TEXT]
        wanted = language(input_ids=tokens).logits[0, :, :TEXT]
    # Behind a window of 4 tokens the language model sees less.
    torch.testing.assert_close(found[:4], wanted[:4], atol=1e-5, rtol=1e-4)
