"""MAGVITv2, Show-o's image tokenizer: pixels to integer codes and back."""

from showo_dist.models.magvitv2.config import MAGVITv2Config, StackConfig
from showo_dist.models.magvitv2.model import MAGVITv2, TokenizerOutput
from showo_dist.models.magvitv2.quantizer import LookupFreeQuantizer, QuantizerLosses

__all__ = [
    "LookupFreeQuantizer",
    "MAGVITv2",
    "MAGVITv2Config",
    "QuantizerLosses",
    "StackConfig",
    "TokenizerOutput",
]
