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

import lazy_loader

# __init__.pyi has the public names. Each is imported at its first use: importing torch takes seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
