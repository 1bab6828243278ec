"""Pruning masks of large language models, refined by exact 1-swaps ([arXiv 2512.10922](https://arxiv.org/abs/2512.10922)).

One model of transformers, pruned in place:

```python
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
result = sparseswaps.prune(model, tokenizer, pattern="2:4", calibration="text.jsonl")
model.save_pretrained("pruned")
sparseswaps.keep_zeros(model, result.masks)  # while any optimizer trains it
```

One layer, from its weight [d_out, d_in] and its inputs [tokens, d_in]:

```python
gram = sparseswaps.gram_matrix(inputs)
pattern = sparseswaps.parse_pattern("60%")
start = sparseswaps.warmstart(weight, gram, pattern, "wanda")
result = sparseswaps.refine_mask(weight, gram, start, pattern)
pruned = weight * result.mask
```
"""

from pkgutil import resolve_name
from typing import Any

_PUBLIC = {
    "prune": "sparseswaps.pruning.model:prune",
    "Pruned": "sparseswaps.pruning.model:Pruned",
    "Reconstruction": "sparseswaps.layer.settings:Reconstruction",
    "keep_zeros": "sparseswaps.model.masked:keep_zeros",
    "apply_masks": "sparseswaps.model.masked:apply_masks",
    "gram_matrix": "sparseswaps.layer.gram:gram_matrix",
    "parse_pattern": "sparseswaps.layer.pattern:parse_pattern",
    "warmstart": "sparseswaps.layer.criteria:warmstart",
    "refine_mask": "sparseswaps.layer.swaps.engine:refine",
    "Refinement": "sparseswaps.layer.swaps.engine:Refinement",
    "InputError": "sparseswaps.base.errors:InputError",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    """What users call, imported when it is: the workflow's quick stages need no torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve_name(_PUBLIC[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
