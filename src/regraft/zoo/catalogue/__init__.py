"""The catalogue of checkpoints: a database of records, lineage and measurements that is kept up to date with folders."""

from __future__ import annotations

from regraft.zoo.catalogue.catalogue import Catalogue, open_catalogue
from regraft.zoo.catalogue.entries import Entry, Page
from regraft.zoo.catalogue.index import Summary, index
from regraft.zoo.catalogue.measurements import Compared, Measurement, Outcomes
from regraft.zoo.catalogue.place import NoCatalogueError

__all__ = [
    "Catalogue",
    "Compared",
    "Entry",
    "Measurement",
    "NoCatalogueError",
    "Outcomes",
    "Page",
    "Summary",
    "index",
    "open_catalogue",
]
