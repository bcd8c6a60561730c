"""The table of token ids: text tokens, ten special tokens, image codes and the mask token, in this order."""

from dataclasses import dataclass

# Their ids follow those of the text tokens, in this order (docs/specification.md, section 1). Show-o uses
# the first three, t2i and mmu; the video tokens only keep the published numbering.
SPECIAL_TOKENS = (
    "[PAD]",
    "<|soi|>",
    "<|eoi|>",
    "<|sov|>",
    "<|eov|>",
    "<|t2i|>",
    "<|mmu|>",
    "<|t2v|>",
    "<|v2v|>",
    "<|lvg|>",
)


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one Show-o model.

    Args:
        text: number of text tokens of the language model (50,295 for phi-1.5).
        codebook: number of image codes (8,192 for the released tokenizer).
        bos: id of the token before a text. phi-1.5 has ``<|endoftext|>`` alone, as bos and eos (and sot
            and eot).
        end: id of the token behind a text, eos; None: that of ``bos``.
    """

    text: int
    codebook: int
    bos: int
    end: int | None = None

    def special(self, token: str) -> int:
        """Id of one of :data:`SPECIAL_TOKENS`."""
        # Special tokens follow the text tokens in the table's order.
        return self.text + SPECIAL_TOKENS.index(token)

    @property
    def eos(self) -> int:
        return self.bos if self.end is None else self.end

    @property
    def pad(self) -> int:
        return self.special("[PAD]")

    @property
    def soi(self) -> int:
        return self.special("<|soi|>")

    @property
    def eoi(self) -> int:
        return self.special("<|eoi|>")

    @property
    def t2i(self) -> int:
        return self.special("<|t2i|>")

    @property
    def mmu(self) -> int:
        return self.special("<|mmu|>")

    @property
    def image_offset(self) -> int:
        """Id of image code 0."""
        return self.text + len(SPECIAL_TOKENS)

    @property
    def mask(self) -> int:
        """Id of the mask token, the last one of the table."""
        # One past the last code, so "masked" is just another code for the samplers.
        return self.image_offset + self.codebook

    @property
    def size(self) -> int:
        return self.mask + 1
