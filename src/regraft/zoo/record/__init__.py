"""Records: what a catalogue keeps of a checkpoint, read from headers and small files."""

from __future__ import annotations

from regraft.zoo.record.licences import forbids
from regraft.zoo.record.listing import file_id_of
from regraft.zoo.record.read import read_record
from regraft.zoo.record.record import Claim, FileFact, Licence, Parent, Record, Risk

__all__ = ["Claim", "FileFact", "Licence", "Parent", "Record", "Risk", "file_id_of", "forbids", "read_record"]
