"""What a LoRA calls its base: what stock peft and transformers can load it by."""

from __future__ import annotations

from regraft.checkpoint import reference
from regraft.checkpoint.weights import Weights


def base_of(template: Weights) -> tuple[str, str | None]:
    """The base's name on the Hub and the revision that was asked for; of any other its folder, from the root on."""
    base = reference.parse(template.reference).base
    if base.startswith("hf:") and not reference.exists(base):
        name, _, revision = base.removeprefix("hf:").partition("@")
        return name, revision or None
    return str(template.encoder_folder.absolute()), None
