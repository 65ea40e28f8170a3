"""Random initialisation that depends on the seed and each tensor's name alone.

    w ~ N(0, initializer_range^2) by Box-Muller over Philox bits:  z = sqrt(-2 ln u1) cos(2 pi u2)
    norms: weight 1, bias 0;  biases 0;  the padding token's embedding 0

Source: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3" (Philox); Devlin et al. (2018),
arXiv:1810.04805 (the standard deviation 0.02).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from regraft.randomness import seed_of

BLOCK = 2**20  # elements drawn at once: bounds the memory, and is part of what defines the values


def draw_weights(model: Any, seed: int, std: float, only: set[str] | None = None) -> None:
    """Set a model's parameters anew, in place; `only` limits it to parameters of these names."""
    owners = {
        f"{prefix}.{name}" if prefix else name: (module, name)
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    with torch.no_grad():
        for full_name, parameter in model.named_parameters():
            if only is not None and full_name not in only:
                continue
            module, name = owners[full_name]
            if "norm" in type(module).__name__.lower():
                parameter.fill_(0.0 if name == "bias" else 1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.copy_(torch.from_numpy(normal(parameter.numel(), seed, full_name)).view_as(parameter) * std)
                if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                    parameter[module.padding_idx].zero_()


def normal(count: int, seed: int, name: str) -> np.ndarray:
    """`count` standard normal float32 values for a tensor's name."""
    bits = np.random.Philox(key=seed_of(seed, "random weights", name))
    out = np.empty(count, dtype=np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        # 53 bits a number, as floats in (0, 1]: the logarithm of 0 must not occur.
        uniform = ((bits.random_raw(2 * size) >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[:size]))
        out[start : start + size] = radius * np.cos(2.0 * np.pi * uniform[size:])
    return out
