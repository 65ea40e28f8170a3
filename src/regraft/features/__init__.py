"""Features of checkpoints: every layer, mean and first token, one pass, kept in the store."""

from regraft.features.blocks import BLOCK, Blocks, extract_blocks
from regraft.features.extract import DTYPES, extract, extract_all, number_format
from regraft.features.passes import shared_passes
from regraft.features.views import FeatureRows, Features, Joined

__all__ = [
    "BLOCK",
    "DTYPES",
    "Blocks",
    "FeatureRows",
    "Features",
    "Joined",
    "extract",
    "extract_all",
    "extract_blocks",
    "number_format",
    "shared_passes",
]
