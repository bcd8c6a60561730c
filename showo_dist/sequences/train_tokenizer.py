"""``showo-dist text-tokenizer``: train a byte-level BPE tokenizer on the texts of shards."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from showo_data import FlowSpec, Sample, Source, vq_transform
from showo_data.samples import Kind
from showo_dist.sequences.text import END_OF_TEXT, description_prompts, question_prompt


def texts_of(urls: tuple[str, ...], kind: Kind, limit: int) -> Iterator[str]:
    """Yield the texts of the first samples of some shards, formatted as in training.

    Args:
        urls: paths, URLs or brace patterns of the shards.
        kind: ``text`` for captions and plain texts, or ``conversation``.
        limit: largest number of samples to read.
    """
    # The source decodes the image of a conversation; resizing it to one pixel keeps that cheap.
    source = Source(FlowSpec(flow="text", kind=kind, urls=urls, batch=1, transform=vq_transform(1)))
    for position in range(min(limit, len(source))):
        sample = source[position]
        if isinstance(sample, Sample):
            yield from filter(None, [sample.text])
            for role, value in sample.conversation or []:
                yield question_prompt(value) if role == "human" else f" {value}"


def train(texts: Iterator[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most ``size`` tokens; ``<|endoftext|>`` is its only special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


def main(argv: list[str]) -> int:
    """``showo-dist text-tokenizer --out DIR --size N [--texts URL…] [--conversations URL…]``.

    The description prompts are always part of the texts.
    """
    parser = argparse.ArgumentParser(prog="showo-dist text-tokenizer", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", type=int, required=True, help="number of tokens")
    parser.add_argument(
        "--limit", type=int, default=20_000, help="samples of each kind (%(default)s)"
    )
    parser.add_argument(
        "--texts", nargs="*", default=[], metavar="URL", help="captions, plain texts"
    )
    parser.add_argument(
        "--conversations", nargs="*", default=[], metavar="URL", help="LLaVA shards"
    )
    arguments = parser.parse_args(argv)
    texts = [question_prompt(prompt) for prompt in description_prompts()]
    kinds: dict[Kind, list[str]] = {
        "text": arguments.texts,
        "conversation": arguments.conversations,
    }
    for kind, urls in kinds.items():
        if urls:
            texts += texts_of(tuple(urls), kind, arguments.limit)
    tokenizer = train(iter(texts), arguments.size)
    tokenizer.save_pretrained(arguments.out)
    print(f"{len(tokenizer)} tokens from {len(texts)} texts in {arguments.out}")
    return 0
