"""Plans on small made-up anatomies: units in names, fused blocks, shares; expected arrays are written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.anatomy import Settings, bind, compute, parse, plan_change
from regraft.errors import AnatomyError

TEXT = """\
model_type: made-up
axes:
  layer: {size: layers, order: sequence}
  expert: {size: experts, per: layer, lists: [names]}
  hidden: width
  heads: {size: heads, per: layer}
  qk: {size: head, per: [layer, heads], dot: true}
  v: {size: head, per: [layer, heads]}
  ffn: {size: inner, per: [layer, expert]}
body:
  h.{layer}.experts.{expert}.up.*: ffn <- hidden
  h.{layer}.experts.{expert}.down.weight: hidden <- ffn
  h.{layer}.qkv.weight: heads*(qk + qk + v) <- hidden
  h.{layer}.gate.weight: 2*ffn <- hidden
"""
RAW = {"model_type": "made-up", "layers": 2, "experts": 3, "width": 2, "heads": 2, "head": 2, "inner": 4}


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        for expert in range(3):
            at = f"h.{layer}.experts.{expert}"
            found |= {f"{at}.up.weight": (4, 2), f"{at}.up.bias": (4,), f"{at}.down.weight": (2, 4)}
        found[f"h.{layer}.qkv.weight"] = (12, 2)
    return found


def bound():  # type: ignore[no-untyped-def]
    return bind(parse(TEXT, "made-up.yaml"), Settings(RAW, stock=False), shapes())


def test_units_in_names_are_renamed_dropped_and_copied() -> None:
    orders = {0: [2, 0], 1: [1, 1]}
    plan = plan_change(bound(), {"layer": [1, 0, 1], "expert": lambda units: orders[units["layer"]]})
    sources = {one.name: one.source for one in plan.outputs if "up.bias" in one.name}
    assert sources == {
        "h.0.experts.0.up.bias": "h.1.experts.1.up.bias", "h.0.experts.1.up.bias": "h.1.experts.1.up.bias",
        "h.1.experts.0.up.bias": "h.0.experts.2.up.bias", "h.1.experts.1.up.bias": "h.0.experts.0.up.bias",
        "h.2.experts.0.up.bias": "h.1.experts.1.up.bias", "h.2.experts.1.up.bias": "h.1.experts.1.up.bias",
    }  # fmt: skip
    assert (plan.settings.raw["layers"], plan.settings.raw["experts"]) == (3, 2)


def test_fused_blocks_per_head() -> None:
    """Rows of one head: q0 q1 k0 k1 v0 v1. Head 0 keeps its channels, head 1 turns its query and key around."""
    plan = plan_change(
        bound(), {"heads": [1, 0], "qk": lambda units: [1, 0] if units == {"layer": 0, "heads": 1} else [0, 1]}
    )
    (one,) = (one for one in plan.outputs if one.name == "h.0.qkv.weight")
    rows = compute(one, np.arange(12.0)[:, None].repeat(2, 1))[:, 0]
    assert rows.tolist() == [7, 6, 9, 8, 10, 11, 0, 1, 2, 3, 4, 5]


def test_copies_share_what_they_contribute() -> None:
    plan = plan_change(bound(), {"ffn": [0, 0, 0, 1], "hidden": [0, 1, 1], "qk": [0, 1, 1]} | {"v": [0, 0, 1]})
    made = {one.name: compute(one, np.ones(shapes()[one.source])) for one in plan.outputs}
    third, half = 1 / 3, 1 / 2
    np.testing.assert_allclose(made["h.0.experts.0.down.weight"], [[third, third, third, 1]] * 3)
    np.testing.assert_allclose(made["h.0.experts.0.up.weight"], [[1, half, half]] * 4)
    assert made["h.0.experts.0.up.bias"].tolist() == [1, 1, 1, 1]
    rows = made["h.1.qkv.weight"][:, 0]  # query and key: 1, 2**-0.5, 2**-0.5; value: 1, 1, 1
    np.testing.assert_allclose(rows, [1, 0.5**0.5, 0.5**0.5, 1, 0.5**0.5, 0.5**0.5, 1, 1, 1] * 2)


def test_one_expert_that_is_missing_is_named() -> None:
    lacking = {name: shape for name, shape in shapes().items() if name != "h.1.experts.2.down.weight"}
    with pytest.raises(AnatomyError, match=r"h.\{layer\}.experts.\{expert\}.down.weight' some units are missing"):
        bind(parse(TEXT, "made-up.yaml"), Settings(RAW, stock=False), lacking)


def test_two_axes_of_one_key_and_lists_follow() -> None:
    plan = plan_change(bound(), {"qk": [0, 0, 1], "v": [1, 0, 0]})
    assert plan.settings.raw["head"] == 3
    with pytest.raises(AnatomyError, match="axes qk and v would both set head, to 1 and 2"):
        plan_change(bound(), {"qk": [0]})
