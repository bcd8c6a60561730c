"""Sizes of the image tokenizer; the defaults are the released model (docs/specification.md, section 7)."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class StackConfig:
    """Sizes of an encoder or a decoder. Level 0 has the full resolution; each further level halves it."""

    channels: int = 128
    """Channels at multiplier 1."""

    multipliers: list[int] = field(default_factory=lambda: [1, 2, 2, 4, 4])
    """Channel multiplier of each level. n levels downsample by 2**(n-1)."""

    res_blocks: list[int] = field(default_factory=lambda: [4, 3, 4, 3, 4])
    """Residual blocks of each level; 0 is allowed where a level does not change the width."""

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    def validate(self, name: str, norm_groups: int) -> None:
        """Raise ``ValueError`` if sizes do not fit together; the message names the key under ``name``."""
        if not self.multipliers or len(self.multipliers) != len(self.res_blocks):
            raise ValueError(
                f"{name}.res_blocks={list(self.res_blocks)}: one number per level is needed, "
                f"as many as {name}.multipliers={list(self.multipliers)} has"
            )
        for width in [self.channels, *self.widths]:
            if width <= 0 or width % norm_groups:
                raise ValueError(
                    f"{name}: {width} channels cannot be split into norm_groups={norm_groups}"
                )


def _decoder_sizes() -> StackConfig:
    return StackConfig(multipliers=[1, 1, 2, 2, 4], res_blocks=[4, 4, 3, 4, 3])


@dataclass(kw_only=True)
class MAGVITv2Config:
    """Everything that fixes the shapes of a :class:`MAGVITv2`."""

    resolution: int = 256
    """Side in pixels of the images it is trained on; it accepts any multiple of ``downsample``."""

    bits: int = 13
    """Latent channels. Each gives one bit of the code, so the codebook has ``2**bits`` entries."""

    image_channels: int = 3

    norm_groups: int = 32
    """Groups of every GroupNorm; must divide every level's channels."""

    encoder: StackConfig = field(default_factory=StackConfig)
    decoder: StackConfig = field(default_factory=_decoder_sizes)

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (len(self.encoder.multipliers) - 1)

    @property
    def codebook_size(self) -> int:
        return 2**self.bits

    @property
    def codes_per_image(self) -> int:
        """Number of codes of a square image of ``resolution`` pixels."""
        return (self.resolution // self.downsample) ** 2

    def validate(self) -> None:
        """Raise ``ValueError`` if sizes do not fit together; the message names the key."""
        if not 1 <= self.bits <= 20:
            raise ValueError(f"bits={self.bits}: 1 to 20 are possible")
        for name, value, least in (
            ("norm_groups", self.norm_groups, 1),
            ("resolution", self.resolution, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: {least} or more is needed")
        if self.image_channels != 3:
            raise ValueError(f"image_channels={self.image_channels}: images have 3")
        self.encoder.validate("encoder", self.norm_groups)
        self.decoder.validate("decoder", self.norm_groups)
        widths = self.encoder.widths
        _check_empty_levels("encoder", [self.encoder.channels, *widths], self.encoder.res_blocks)
        widths = self.decoder.widths
        _check_empty_levels("decoder", [*widths, widths[-1]], self.decoder.res_blocks)
        if len(self.encoder.multipliers) != len(self.decoder.multipliers):
            raise ValueError(
                f"decoder.multipliers={list(self.decoder.multipliers)}: as many levels as "
                f"encoder.multipliers={list(self.encoder.multipliers)} are needed"
            )
        if self.resolution % self.downsample:
            raise ValueError(
                f"resolution={self.resolution}: must be a multiple of {self.downsample}, "
                f"the down-sampling of {len(self.encoder.multipliers)} levels"
            )


def _check_empty_levels(name: str, widths: list[int], res_blocks: list[int]) -> None:
    """Raise ``ValueError`` if a level without blocks would have to change the number of channels."""
    for level, blocks in enumerate(res_blocks):
        before, after = widths[level], widths[level + 1]
        if blocks < 0 or (blocks == 0 and before != after):
            raise ValueError(
                f"{name}.res_blocks={list(res_blocks)}: level {level} needs at least one block, "
                f"its width changes between {before} and {after}"
            )
