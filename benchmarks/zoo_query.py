"""How long filter, search and tree queries take over a catalogue of as many records as PeaTMOSS has (arXiv 2401.00699).

    python benchmarks/zoo_query.py --scratch FOLDER                      281,638 records; the target: p95 under 50 ms
    python benchmarks/zoo_query.py --scratch FOLDER --count 28164
    python benchmarks/zoo_query.py --scratch FOLDER --catalogue postgresql+psycopg://...

The records are drawn so that values are as uneven as on a hub (Zipf): a few architectures, licences, tags and parents have most
of the checkpoints. Queries are drawn from the same values, common and rare ones alike, and take the first 50 results.
Queries of another seed are asked before, so the page cache is warm; theirs stand under `first`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

from regraft.zoo.catalogue import Catalogue, open_catalogue
from regraft.zoo.record.record import Claim, FileFact, Licence, Parent, Record, Risk

PEATMOSS = 281_638
MODELS = ("bert", "roberta", "distilbert", "t5", "gpt2", "wav2vec2", "vit", "llama", "bart", "deberta-v2", "electra",
          "xlm-roberta",
          "mpnet", "whisper", "clip", "marian", "opt", "bloom", "gpt_neox", "albert")  # fmt: skip
LICENCES = (
    "apache-2.0",
    "mit",
    "openrail",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "gpl-3.0",
    "afl-3.0",
    "bsd-3-clause",
    "other",
    "llama2",
)
TASKS = ("text-classification", "text-generation", "fill-mask", "token-classification", "text2text-generation",
         "automatic-speech-recognition", "question-answering", "sentence-similarity", "image-classification",
         "translation")  # fmt: skip
WORDS = ("base", "uncased", "finetuned", "large", "small", "cased", "sst2", "squad", "emotion", "ner", "mini", "tiny", "v2", "en",
         "multilingual", "distilled", "conversational", "sentiment", "imdb", "cola", "qa", "summarization", "medical", "legal",
         "german", "french", "code", "instruct", "chat", "lora")  # fmt: skip


def zipf(draw: random.Random, values: tuple[str, ...] | int) -> Any:
    """One of the values, the k-th with a weight of 1 / k; of a number, one below it."""
    size = values if isinstance(values, int) else len(values)
    rank = min(int(size ** draw.random()), size) - 1
    return rank if isinstance(values, int) else values[rank]


def name_of(number: int) -> str:
    """The name of a record."""
    draw = random.Random(f"name {number}")
    words = dict.fromkeys(zipf(draw, WORDS) for _ in range(draw.randint(1, 4)))
    return f"user{zipf(draw, 20_000)}/{zipf(draw, MODELS)}-{'-'.join(words)}-{number}"


def record_of(number: int) -> Record:
    """The record with this number."""
    draw = random.Random(number)
    name, model = name_of(number), zipf(draw, MODELS)
    parent = name_of(zipf(draw, number)) if number and draw.random() < 0.6 else None
    other = name_of(zipf(draw, number)) if parent and draw.random() < 0.05 else None
    tag = f"tag-{zipf(draw, 3000)}"
    stated = draw.random() < 0.7
    return Record(
        path=f"/hub/{number // 1000}/{name}", name=name, kind="checkpoint", file_id=f"{number:064x}",
        files=tuple(FileFact(file, 1000 + number, number) for file in ("README.md", "config.json", "model.safetensors")),
        model_type=model, architectures=(f"{model.capitalize()}Model",), layers=draw.choice((2, 4, 6, 12, 24, 32)),
        hidden_size=draw.choice((128, 256, 384, 512, 768, 1024)), heads=draw.choice((2, 4, 12, 16)), vocabulary_size=30522,
        max_length=draw.choice((128, 512, 1024)), parameters=int(10 ** draw.uniform(6, 10)),
        weight_bytes=int(10 ** draw.uniform(6, 10)),
        dtypes={draw.choice(("F32", "F16", "BF16")): 1000}, tensors=200,
        tokenizer_id=f"{zipf(draw, 500):032x}", tokenizer="WordPiece",
        labels=("a", "b") if draw.random() < 0.3 else None, task=zipf(draw, TASKS), languages=(draw.choice(("en", "de", "fr")),),
        tags=(tag, f"tag-{zipf(draw, 3000)}", "transformers"), datasets=(f"data-{zipf(draw, 2000)}",),
        licence=Licence(stated=zipf(draw, LICENCES) if stated else None, card=None),
        parents=tuple(Parent(one, "finetune") for one in (parent, other) if one),
        claims=(Claim(None, "d", None, "accuracy", round(draw.random(), 3)),) if draw.random() < 0.2 else (),
        completeness=draw.randint(0, 10) / 10, library="transformers",
        risks=(Risk("pickle", "danger", "pytorch_model.bin", "It is a pickle."),) if draw.random() < 0.4 else (),
        extra={"downloads": float(zipf(draw, 10**6))},
    )  # fmt: skip


def filters(draw: random.Random) -> str:
    """One to four conditions, as a user may write them."""
    conditions = [
        lambda: f"architecture={zipf(draw, MODELS)}", lambda: f"licence={zipf(draw, LICENCES)}",
        lambda: f"licence={zipf(draw, LICENCES)},{zipf(draw, LICENCES)}", lambda: f"task={zipf(draw, TASKS)}",
        lambda: f"tag=tag-{zipf(draw, 3000)}", lambda: f"dataset=data-{zipf(draw, 2000)}",
        lambda: f"layers<={draw.choice((2, 6, 12))}",
        lambda: f"hidden_size={draw.choice((128, 384, 1024))}", lambda: f"parameters<{draw.choice(('2M', '50M', '1B'))}",
        lambda: f"parameters>={draw.choice(('100M', '7B'))}", lambda: "risk=pickle", lambda: "risk!=pickle",
        lambda: f"claimed:accuracy>{draw.choice((0.5, 0.9, 0.99))}", lambda: f"tokenizer_id={zipf(draw, 500):032x}",
        lambda: f"name={name_of(draw.randrange(1000)).split('/')[0]}*", lambda: "labels=2", lambda: "dtype=bf16",
        lambda: f"completeness>{draw.choice((0.5, 0.9))}",
    ]  # fmt: skip
    return " ".join(one() for one in draw.sample(conditions, draw.randint(1, 4)))


def measure(queries: list[Any], ask: Callable[[Any], Any]) -> dict[str, Any]:
    """Milliseconds of each query, asked once: percentiles, and the slowest."""
    times, sizes = [], []
    for query in queries:
        begun = time.perf_counter()
        found = ask(query)
        times.append(1000 * (time.perf_counter() - begun))
        sizes.append(len(found))
    slow = sorted(zip(times, map(str, queries), strict=True), reverse=True)[:3]
    return {
        "queries": len(queries), **{f"p{at}_ms": round(float(np.percentile(times, at)), 2) for at in (50, 95, 99)},
        "max_ms": round(max(times), 2), "results_median": int(np.median(sizes)),
        "slowest": [[round(ms, 1), text] for ms, text in slow],
    }  # fmt: skip


def fill(catalogue: Catalogue, count: int) -> float:
    """Put the records in, where they are not; returns seconds."""
    begun = time.monotonic()
    from regraft.zoo.catalogue import lineage, writing

    start = catalogue.count()
    for at in range(start, count, 2000):
        with catalogue.database.writing() as connection:
            writing.put(connection, [(record_of(number), False) for number in range(at, min(at + 2000, count))])
    with catalogue.database.writing() as connection:
        if writing.relink_asked(connection):
            lineage.relink(connection)
    return time.monotonic() - begun


def asked_of(catalogue: Catalogue, draw: random.Random, given: argparse.Namespace) -> dict[str, Any]:
    """How long queries of the three kinds take."""
    asked = [filters(draw) for _ in range(given.queries)]
    words = [" ".join(draw.sample((*WORDS, *MODELS), draw.randint(1, 3))) for _ in range(given.queries)]
    # Half of them common parents (small numbers), half anything.
    names = [
        name_of(zipf(draw, given.count) if number % 2 else draw.randrange(given.count))
        for number in range(given.queries)
    ]
    return {
        "filter": measure(asked, lambda text: catalogue.find(text).entries),
        "search": measure([text + "*" if at % 4 == 0 else text for at, text in enumerate(words)], catalogue.search),
        "tree": measure(names, lambda name: catalogue.tree(name).nodes),
    }


def main() -> None:
    """Fill the catalogue, ask, write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scratch", type=Path, required=True, help="a folder for the catalogue (281,638 records take 1.5 GB)"
    )
    parser.add_argument("--count", type=int, default=PEATMOSS)
    parser.add_argument("--queries", type=int, default=300, help="of each kind")
    parser.add_argument("--catalogue", help="a URL of PostgreSQL; a SQLite file in the scratch folder by default")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results file")
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    with open_catalogue(given.catalogue or given.scratch / f"query-{given.count}.sqlite") as catalogue:
        cell: dict[str, Any] = {"count": given.count, "filled_s": round(fill(catalogue, given.count), 1)}
        # Other queries first: they read the file into the page cache, and show what that costs.
        cell["first"] = asked_of(catalogue, random.Random(6), given)
        cell |= asked_of(catalogue, random.Random(7), given)
    common.Results("zoo_query", given.results).put(
        f"{'postgresql' if given.catalogue else 'sqlite'}/{given.count}", cell
    )
    print(json.dumps(cell, indent=1))


if __name__ == "__main__":
    main()
