# %% [markdown]
# # Prune a model, look at it, save it, train it on
#
# The embedded model and text, so it runs offline: `python examples/prune.py`, a minute of one CPU core.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparseswaps
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.sampling import draw, tokenize
from sparseswaps.embedded import MODEL
from sparseswaps.evaluation.perplexity import perplexity, windows

torch.set_num_threads(1)  # as the workflow does by default: floating-point sums depend on it


def fresh():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


tokenizer = AutoTokenizer.from_pretrained(MODEL)
evaluation = windows(tokenize(tokenizer, "\n\n".join(load("embedded", "evaluation"))), seqlen=256, limit=64)
perplexities = {"dense": perplexity(fresh(), evaluation).perplexity}

# %% [markdown]
# ## One model
# Wanda's masks as they are (`max_swaps=0`), and the same refined by 1-swaps to every row's local optimum.

# %%
settings = {"pattern": "60%", "warmstart": "wanda", "calibration": "embedded", "samples": 64, "seqlen": 256}
model = fresh()
sparseswaps.prune(model, tokenizer, **settings, max_swaps=0)
perplexities["60 %, Wanda"] = perplexity(model, evaluation).perplexity

model = fresh()
result = sparseswaps.prune(model, tokenizer, **settings)
perplexities["60 %, Wanda and swaps"] = perplexity(model, evaluation).perplexity

# %% [markdown]
# ## New weights
# In seconds: the kept weights fitted to the mask, towards the dense model's outputs. In a minute: each block trained to
# give the dense block's output, while its mask tightens.

# %%
inputs = {"propagate": "pruned", "order": "sequential", "dense_target": 0.5}
for name, block in (("fitted", None), ("trained", {"epochs": 4, "levels": 4})):
    model_with_new_weights = fresh()
    reconstruction = sparseswaps.Reconstruction(block=block)
    sparseswaps.prune(model_with_new_weights, tokenizer, **settings, **inputs, reconstruction=reconstruction)
    perplexities[f"60 %, Wanda and swaps, weights {name}"] = perplexity(model_with_new_weights, evaluation).perplexity

# %% [markdown]
# ## The layers of the refined model
# A row a layer, with the errors of both masks on the calibration text and on held-out text.

# %%
layers = pandas.DataFrame(result.losses)
layers["error, %"] = 100 * (layers["loss_after"] / layers["loss_before"] - 1)
layers["held out, %"] = 100 * (layers["held_out_after"] / layers["held_out_before"] - 1)
print("What refinement changes in the error of each kind of layer, mean over the blocks, and its swaps")
print(
    layers.groupby("layer", sort=False)[["error, %", "held out, %", "swaps", "rows", "rows_certified"]].mean().round(1)
)

# %% [markdown]
# ## Saved, and trained on
# The checkpoint is an ordinary one. While an optimizer trains the model, `keep_zeros` sets pruned weights back to zero.

# %%
with TemporaryDirectory() as folder:
    model.save_pretrained(Path(folder) / "pruned")
    tokenizer.save_pretrained(Path(folder) / "pruned")
    model = AutoModelForCausalLM.from_pretrained(Path(folder) / "pruned")

handle = sparseswaps.keep_zeros(model, result.masks)
text, _ = draw(load("embedded", "calibration"), tokenizer, samples=80, held_out=0, seqlen=256, seed=1)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
model.train()
for batch in text.split(4):
    optimizer.zero_grad()
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()
handle.remove()
perplexities[f"{len(text) // 4} steps of training later"] = perplexity(model, evaluation).perplexity

for name, mask in result.masks.items():
    assert not model.get_parameter(name)[~mask].any(), f"{name} has lost zeros"

# %%
print(f"\nperplexity on {len(evaluation)} windows of 256 tokens of held-out text")
for name, value in perplexities.items():
    print(f"{name:28} {value:6.2f}")

# %% [markdown]
# ## One layer
# All that its pruning error has to know of its inputs is their Gram matrix.

# %%
model, activations = fresh(), []
layer = model.model.layers[0].mlp.down_proj
layer.register_forward_pre_hook(lambda _module, args: activations.append(args[0]))
with torch.no_grad():
    model(input_ids=text[:16])

gram, pattern = sparseswaps.gram_matrix(activations), sparseswaps.parse_pattern("2:4")
start = sparseswaps.warmstart(layer.weight, gram, pattern, "wanda")
refined = sparseswaps.refine_mask(layer.weight, gram, start, pattern)
before, after = refined.loss_before.sum(), refined.loss_after.sum()
print(f"\none layer, 2:4 from Wanda: error {before:.4g}, refined {after:.4g}, {refined.swaps.sum()} swaps")
