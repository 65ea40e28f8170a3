"""Features of checkpoints: every layer, mean and first token, one pass, kept in the store."""

from regraft.features.extract import (
    DTYPES,
    FeatureRows,
    Features,
    Joined,
    extract,
    extract_all,
    number_format,
    shared_passes,
)

__all__ = [
    "DTYPES",
    "FeatureRows",
    "Features",
    "Joined",
    "extract",
    "extract_all",
    "number_format",
    "shared_passes",
]
