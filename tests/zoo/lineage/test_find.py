"""Edges of families whose making is known: all of them, none besides, in any order."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.checkpoint.card import licence_of, parents_of, read_card
from regraft.merge.recipe.spec import spec_of
from regraft.merge.run import merge
from regraft.progress import SILENT, Progress
from regraft.zoo.lineage import RELATIONS, Edge, find_edges
from regraft.zoo.lineage.model import names_parent, open_models


def shown(edges: Iterable[Edge]) -> dict[str, tuple[frozenset[str], str]]:
    """Parents and relation by the child's name."""
    return {Path(edge.child).name: (frozenset(Path(one).name for one in edge.parents), edge.relation) for edge in edges}


def made(*rows: tuple[str, str, str]) -> dict[str, tuple[frozenset[str], str]]:
    """The same from rows of child, parents, relation."""
    return {child: (frozenset(parents.split()), relation) for child, parents, relation in rows}


@pytest.fixture(scope="module")
def bert_zoo(workshop: Any) -> tuple[list[Path], dict[str, tuple[frozenset[str], str]]]:
    w = workshop
    base = w.base("bert", "base", 0)
    a, b, c = (w.tuned(base, name, seed) for name, seed in (("a", 1), ("b", 2), ("c", 3)))
    child = w.tuned(a, "a-child", 4)
    grandchild = w.tuned(child, "a-grandchild", 5)
    cut = w.cut(base, "cut", [0, 1])
    folders = [
        base, a, b, c, child, grandchild, cut,
        w.tuned(cut, "cut-tuned", 6),
        w.cut(a, "a-cut", [0, 2, 3]),
        w.tuned(w.cut(b, "gone-cut", [0, 1, 3]), "b-cut-tuned", 7),
        w.pruned(base, "base-pruned", 0.4),
        w.pruned(a, "a-pruned", 0.5),
        w.rounded(b, "b-int8"),
        w.rounded(base, "base-int4", 4),
        w.as_format(base, "base-bf16", torch.bfloat16),
        w.as_format(c, "c-fp16", torch.float16, torch.float32),
        w.lora(base, "base-lora", ["query", "value"]),
        w.lora(a, "a-lora", ["query", "key", "value", "dense"], seed=1),
        w.averaged([b, c], "average"),
        w.tuned(w.root / "average", "average-tuned", 8, steps=10),
        w.masked(w.root / "base-pruned", "base-pruned-tuned", 9),
        w.masked(w.pruned(c, "gone-pruned", 0.6), "c-pruned-tuned", 10),
        w.written(c, "c-copy", lambda tensors: tensors),
        w.base("bert", "stranger", 11), w.base("bert", "alien", 12), w.base("bert", "short-stranger", 13, 2),
    ]  # fmt: skip
    spec = spec_of("task_arithmetic", [str(a), str(b)], base=str(base), weight=[0.4, 0.4])
    merge(spec, w.root / "arithmetic")
    merge(spec_of("linear", [str(a), str(c)], weight=[0.7, 0.3]), w.root / "linear")
    merge(spec_of("ties", [str(b), str(c)], base=str(base), density=0.5), w.root / "ties")
    folders += [w.root / "arithmetic", w.root / "linear", w.root / "ties"]
    expected = made(
        ("a", "base", "finetuned"), ("b", "base", "finetuned"), ("c", "base", "finetuned"),
        ("a-child", "a", "finetuned"), ("a-grandchild", "a-child", "finetuned"),
        ("cut", "base", "truncated"), ("cut-tuned", "cut", "finetuned"), ("a-cut", "a", "truncated"),
        ("b-cut-tuned", "b", "truncated+finetuned"),
        ("base-pruned", "base", "pruned"), ("a-pruned", "a", "pruned"),
        ("b-int8", "b", "quantised"), ("base-int4", "base", "quantised"),
        ("base-bf16", "base", "quantised"), ("c-fp16", "c", "quantised"),
        ("base-lora", "base", "lora-merged"), ("a-lora", "a", "lora-merged"),
        ("average-tuned", "average", "finetuned"), ("base-pruned-tuned", "base-pruned", "finetuned"),
        ("c-pruned-tuned", "c", "pruned+finetuned"),
        ("average", "b c", "merged"), ("c-copy", "c", "identical"),
        ("arithmetic", "base a b", "merged"), ("linear", "a c", "merged"), ("ties", "base b c", "merged"),
    )  # fmt: skip
    return folders, expected


@pytest.mark.parametrize("order", [0, 1, 2])
def test_every_edge_of_a_family_is_found(bert_zoo: Any, order: int) -> None:
    folders, expected = bert_zoo
    folders = list(folders)
    random.Random(order).shuffle(folders)
    edges = find_edges(folders)
    assert shown(edges) == expected
    for edge in edges:
        assert set(edge.relation.split("+")) <= set(RELATIONS)
        assert edge.p_value is not None and edge.p_value < 1e-6
        assert "Sampled:" in edge.evidence
        assert not edge.stated


def test_edges_do_not_depend_on_the_order(bert_zoo: Any) -> None:
    folders, _ = bert_zoo
    assert find_edges(folders) == find_edges(folders[::-1])


def test_coefficients_of_merges_are_in_the_evidence(bert_zoo: Any) -> None:
    found = {Path(edge.child).name: edge.evidence for edge in find_edges(bert_zoo[0])}
    assert "0.7 x" in found["linear"] and "0.3 x" in found["linear"]
    assert found["arithmetic"].count("0.4 x") == 2
    assert "0.5 x" in found["average"]
    assert "rank 3" in found["base-lora"]
    assert "without 2, 3" in found["cut"]
    assert "bf16" in found["base-bf16"]


@pytest.mark.parametrize(
    "present",
    [["a", "b"], ["a", "b", "c"], ["a-child", "b", "c"], ["b-int8", "c"], ["stranger", "alien"], ["stranger", "base"]],
)  # fmt: skip
def test_without_the_parent_there_is_no_edge(bert_zoo: Any, present: list[str]) -> None:
    folders = [folder for folder in bert_zoo[0] if folder.name in present]
    assert shown(find_edges(folders)) == {}


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_a_pair_has_a_direction(workshop: Any, seed: int) -> None:
    w = workshop
    base = w.base("bert", f"pair-{seed}", seed)
    tuned = w.tuned(base, f"a-pair-{seed}", seed, steps=12, rate=3e-3)  # sorts before its parent
    assert shown(find_edges([base, tuned])) == made((tuned.name, base.name, "finetuned"))


def test_a_lost_generation_is_skipped(bert_zoo: Any) -> None:
    folders = [one for one in bert_zoo[0] if one.name in ("base", "b", "c", "a-child")]
    assert shown(find_edges(folders))["a-child"] == (frozenset({"base"}), "finetuned")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_decoders(workshop: Any, kind: str) -> None:
    w = workshop
    base = w.base(kind, f"{kind}-base", 3, layers=3)
    a, b = w.tuned(base, f"{kind}-a", 1), w.tuned(base, f"{kind}-b", 2)
    targets = ["c_attn", "c_proj"] if kind == "gpt2" else ["q_proj", "v_proj"]
    folders = [
        base, a, b, w.tuned(a, f"{kind}-aa", 3), w.cut(base, f"{kind}-cut", [0, 1]),
        w.pruned(b, f"{kind}-pruned", 0.3), w.rounded(a, f"{kind}-int8"), w.averaged([a, b], f"{kind}-average"),
        w.lora(b, f"{kind}-lora", targets), w.base(kind, f"{kind}-stranger", 4, layers=3),
    ]  # fmt: skip
    expected = made(
        (f"{kind}-a", f"{kind}-base", "finetuned"), (f"{kind}-b", f"{kind}-base", "finetuned"),
        (f"{kind}-aa", f"{kind}-a", "finetuned"), (f"{kind}-cut", f"{kind}-base", "truncated"),
        (f"{kind}-pruned", f"{kind}-b", "pruned"), (f"{kind}-int8", f"{kind}-a", "quantised"),
        (f"{kind}-average", f"{kind}-a {kind}-b", "merged"), (f"{kind}-lora", f"{kind}-b", "lora-merged"),
    )  # fmt: skip
    assert shown(find_edges(folders)) == expected


def test_a_new_head_over_the_same_encoder(workshop: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    w = workshop
    base = w.base("bert", "headless", 5)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model.save_pretrained(w.root / "a-headed")
    edges = find_edges([w.root / "a-headed", base])
    assert shown(edges) == made(("a-headed", "headless", "finetuned"))
    assert "only the head differs" in edges[0].evidence


def test_weight_decay_is_no_direction(workshop: Any) -> None:
    """Decay makes a child's weights shorter; its rows tell that apart from training."""
    w = workshop
    base = w.base("bert", "decayed", 6)
    tuned = [w.tuned(base, f"decayed-{seed}", seed, decay=0.1) for seed in (1, 2)]
    assert shown(find_edges([base, *tuned])) == made(
        ("decayed-1", "decayed", "finetuned"), ("decayed-2", "decayed", "finetuned")
    )


def test_the_card_decides_what_the_weights_leave_open(workshop: Any) -> None:
    """Of a child that hardly moved in few elements, only the card can say which came first."""
    w = workshop
    base = w.base("bert", "open", 7)

    def nudge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(0)
        return {key: value + 1e-6 * torch.randn(value.shape, generator=draw) for key, value in tensors.items()}

    child = w.written(base, "a-nudged", nudge)
    assert find_edges([base, child]) == []
    edges = find_edges([base, child], stated={str(child): ["someone/open"]})
    assert shown(edges) == made(("a-nudged", "open", "finetuned"))
    assert edges[0].stated and "card" in edges[0].evidence
    w.card(child, "---\nbase_model: someone/open\n---\n")
    assert shown(find_edges([base, child])) == shown(edges)


def test_what_cannot_be_opened_is_said_and_left_out(workshop: Any, tmp_path: Path) -> None:
    w = workshop
    base = w.base("bert", "whole", 8)
    tuned = w.tuned(base, "whole-tuned", 1, steps=12, rate=3e-3)
    broken = w.written(base, "broken", lambda tensors: tensors)
    (broken / "model.safetensors").write_bytes(b"\x00" * 20)
    poisoned = w.written(base, "poisoned", lambda tensors: {key: one * float("nan") for key, one in tensors.items()})
    heard: list[str] = []

    class Heard(Progress):
        def say(self, text: str) -> None:
            heard.append(text)

    folders = [base, tuned, broken, poisoned, tmp_path / "nowhere"]
    assert shown(find_edges(folders, progress=Heard())) == made(("whole-tuned", "whole", "finetuned"))
    assert sum("leaves out" in text for text in heard) == 3


def test_nothing_to_compare() -> None:
    assert find_edges([]) == []


def test_parents_are_those_that_any_file_of_the_folder_names(workshop: Any) -> None:
    """A snapshot of the Hub's cache is called by its repository; mergekit's recipe names parents, as cards do."""
    base = workshop.base("bert", "models--org--base/snapshots/0123", 3)
    child = workshop.tuned(base, "named-by-a-recipe", 4)
    (child / "mergekit_config.yml").write_text("models:\n- model: org/base\n")
    first, second = open_models([base, child], None, SILENT)
    assert names_parent(second, first) and not names_parent(first, second)


def test_a_card_that_unfolds_names_no_parent(workshop: Any, tmp_path: Path) -> None:
    """Nine lists of nine lists each, as text: gigabytes, from one line."""
    base = workshop.base("bert", "bomb", 5)
    lists = "".join(f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]\n" for at in range(1, 10))
    workshop.card(base, f"---\na0: &a0 [x]\n{lists}base_model: [*a9, org/base]\nlicense: [*a9, mit]\n---\n")
    (found,) = open_models([base], None, SILENT)
    assert found.stated == ()
    card = read_card(base)
    assert parents_of(card) == ("org/base",) and licence_of(card) == "mit"
