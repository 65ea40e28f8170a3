"""Which tensors are one parameter that is stored twice, and which only look alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regraft.checkpoint.weights import open_weights
from regraft.merge.checks.preflight import preflight_of
from regraft.merge.checks.tied import copies
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import Output, spec_of

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def found(*folders: Path) -> dict[str, str]:
    opened = [open_weights(str(folder)) for folder in folders]
    return copies(opened[0], opened)


def test_what_is_equal_in_all_is_a_copy(written: Any, llama: Any) -> None:
    folders = []
    for seed in range(3):
        tensors = llama(seed)
        tensors[HEAD] = tensors[TABLE].copy()
        tensors |= {"cls.bias": np.arange(9.0) + seed, "cls.decoder.bias": np.arange(9.0) + seed}
        folders.append(written(f"m{seed}", tensors))
    assert found(*folders) == {HEAD: TABLE, "cls.decoder.bias": "cls.bias"}


def test_several_copies_are_all_of_the_one_nearest_to_the_top(written: Any, llama: Any) -> None:
    table = llama(0)[TABLE]
    names = ("encoder.embed_tokens.weight", "shared.weight", "lm_head.weight", "decoder.embed_tokens.weight")
    assert found(written("t5", dict.fromkeys(names, table))) == {
        name: "shared.weight" for name in names if name != "shared.weight"
    }


def test_one_element_that_differs_in_one_checkpoint_makes_two_of_them(written: Any, llama: Any) -> None:
    tensors = llama(0)
    tensors[HEAD] = tensors[TABLE].copy()
    same = written("same", tensors)
    tensors[HEAD][-1, -1] += np.float32(1)
    assert found(same) == {HEAD: TABLE}
    assert found(same, written("other", tensors)) == {}


def test_constants_and_what_lies_in_layers_say_nothing(written: Any, llama: Any) -> None:
    tensors = llama(0)
    vector = np.arange(32, dtype=np.float32)
    tensors |= {"norm_a.weight": np.ones(32, np.float32), "norm_b.weight": np.ones(32, np.float32)}
    tensors |= {f"model.layers.{layer}.input_layernorm.weight": vector for layer in range(3)}
    assert found(written("a", tensors)) == {}
    moved = tensors | {name: tensors[name] * vector for name in ("norm_a.weight", "norm_b.weight")}
    # Constant in the base, and changed to the same values: one parameter after all.
    assert found(written("b", tensors), written("c", moved)) == {"norm_b.weight": "norm_a.weight"}


def test_a_lora_holds_them_as_little_as_a_shared_one(written: Any, llama: Any) -> None:
    base, tuned = llama(0), llama(0)
    tuned[TABLE] = tuned[TABLE] + np.float32(0.01)
    for tensors in (base, tuned):
        tensors[HEAD] = tensors[TABLE].copy()
    folders = [written(name, one, {"tie_word_embeddings": True}) for name, one in (("base", base), ("a", tuned))]
    spec = spec_of("task_arithmetic", folders[1:], folders[0], output=Output(format="lora"))
    (error,) = preflight_of(*open_inputs(spec), max_memory=2**29).errors
    assert error.code == "lora-loss" and error.where == (TABLE,)
    assert "shared with the head" in error.problem
