"""Catalogues to test with, and records made at random.

Every test of this folder runs against SQLite; with REGRAFT_TEST_POSTGRES set to the URL of a server it runs against that, each
test in a database of its own (.ci/run does so).
"""

from __future__ import annotations

import json
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regraft.zoo.catalogue import Catalogue, open_catalogue
from regraft.zoo.record.record import Claim, FileFact, Licence, Parent, Record, Risk

SERVER = os.environ.get("REGRAFT_TEST_POSTGRES")


def new_database() -> Iterator[str]:
    """The URL of an empty database of the server, dropped afterwards."""
    import sqlalchemy

    name = f"regraft_{uuid.uuid4().hex}"
    server = sqlalchemy.create_engine(str(SERVER), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name} TEMPLATE template0"))
    yield sqlalchemy.make_url(str(SERVER)).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def where(tmp_path: Path) -> Iterator[str]:
    """Where a new catalogue can be made."""
    if SERVER is None:
        yield str(tmp_path / "catalogue.sqlite")
    else:
        yield from new_database()


@pytest.fixture
def catalogue(where: str) -> Iterator[Catalogue]:
    """An empty catalogue."""
    with open_catalogue(where) as opened:
        yield opened


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Catalogue, list[Record]]]:
    """A catalogue of 400 records made at random, and the records in their order."""
    places = iter([str(tmp_path_factory.mktemp("filled") / "c.sqlite")]) if SERVER is None else new_database()
    where = next(places)
    records = [a_record(number) for number in range(400)]
    with open_catalogue(where) as opened:
        opened.put(records)
        yield opened, records
    next(places, None)


MODELS = {"bert": "BertModel", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "vit": "ViTModel"}
TAGS = ("PyTorch", "en", "sentence-similarity", "naïve", "Résumé v2", "none", "a,b", 'quo"te', "bert*", "模型")
WORDS = ("bert", "base", "mini", "minilm", "Large", "uncased", "sst2", "v2", "Étude", "模型", "l6")


def a_record(number: int) -> Record:
    """A record like those of a Hub, with gaps; the same for the same number."""
    draw = random.Random(number)

    def some(values: Any, most: int = 3) -> tuple[Any, ...]:
        return tuple(draw.sample(list(values), draw.randint(0, most)))

    def maybe(value: Any) -> Any:
        return value if draw.random() < 0.7 else None

    model = draw.choice(list(MODELS))
    name = "-".join(draw.choices(WORDS, k=draw.randint(1, 4)))
    owner = draw.choice(("", "google/", "Org-2/"))
    stated = maybe(draw.choice(("MIT", "apache-2.0", "bsd-3-clause")))
    return Record(
        path=f"/zoo/{number % 7}/{name}-{number}", name=f"{owner}{name}", kind="adapter" if number % 9 == 0 else "checkpoint",
        file_id=f"{number:064x}", files=(FileFact("config.json", 10 + number, number),),
        model_type=maybe(model), architectures=(MODELS[model],) if draw.random() < 0.8 else (),
        layers=maybe(draw.randint(1, 12)), hidden_size=maybe(draw.choice((32, 64, 384))), heads=maybe(2),
        parameters=maybe(draw.randint(1_000, 200_000_000)), weight_bytes=maybe(draw.randint(1_000, 10**9)),
        dtypes=dict.fromkeys(some(("F32", "BF16", "I8"), 2), 100), tied=maybe(draw.random() < 0.5),
        tokenizer=maybe(draw.choice(("WordPiece", "BPE"))), labels=maybe(tuple("abc"[: draw.randint(1, 3)])),
        task=maybe(draw.choice(("text-classification", "fill-mask"))), languages=some(("en", "de", "fr")), tags=some(TAGS),
        datasets=some(("glue", "squad_v2", "Wiki Text")), licence=Licence(stated=stated, conflict=draw.random() < 0.1),
        parents=tuple(Parent(one, maybe("finetune")) for one in some(("google/bert", "x/absent", "mini"), 1)),
        claims=tuple(
            Claim("t", data, None, metric, round(draw.random(), 2))
            for metric, data in some((("accuracy", "glue"), ("F1 (macro)", "squad"), ("Accuracy", "imdb")), 2)
        ),
        completeness=draw.randint(0, 10) / 10, emissions_kg=maybe(draw.random()),
        risks=tuple(Risk(code, level, "model.bin", "words") for code, level in
                    some((("pickle", "danger"), ("missing-file", "warning"), ("code", "danger")), 2)),
        extra={"downloads": float(number)},
    )  # fmt: skip


def a_checkpoint(folder: Path, layers: int = 2, card: str = "", weights: int = 8, **config: Any) -> Path:
    """A folder with a small config, a card and a safetensors file of zeros; nothing of torch is needed to make it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": layers, "hidden_size": 8,
                "num_attention_heads": 2, "vocab_size": 16, "intermediate_size": 16}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings | config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [weights], "data_offsets": [0, 4 * weights]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * weights))
    if card:
        (folder / "README.md").write_text(card)
    return folder


@pytest.fixture(scope="session")
def checkpoint_maker():  # type: ignore[no-untyped-def]
    """The function `a_checkpoint`."""
    return a_checkpoint


@pytest.fixture(scope="session")
def record_maker():  # type: ignore[no-untyped-def]
    """The function `a_record`."""
    return a_record
