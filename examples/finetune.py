"""Train a pruned model with its zeros kept: all its weights, or LoRA's (pip install peft).

The embedded model and text, so it runs offline: `python examples/finetune.py`, a minute of one CPU core.
Both functions take any pruned model, with the masks of `prune` or `apply_masks`.
"""

from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import sparseswaps
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.sampling import draw, tokenize
from sparseswaps.embedded import MODEL
from sparseswaps.evaluation.perplexity import perplexity, windows


def train_all(model, masks, dataset, **options):
    """Train all weights in place. `keep_zeros` sets pruned weights back to zero after every step of the optimizer."""
    handle = sparseswaps.keep_zeros(model, masks)
    run_trainer(model, dataset, **{"learning_rate": 3e-4} | options)
    handle.remove()
    return model


def train_lora(model, masks, dataset, rank=8, mask_products=True, **options):
    """Train LoRA's matrices B A for every pruned linear layer, and return the model with the products merged in.

    A product B A has no zeros, so the masks have to be applied to the merged weights. They are also applied to the
    products during training. Without `mask_products`, training relies on values that are lost after the merge.
    """
    from peft import LoraConfig, get_peft_model  # not a requirement of this project

    pruned = {name.removesuffix(".weight"): mask for name, mask in masks.items() if not mask.all()}
    pruned = {layer: mask for layer, mask in pruned.items() if isinstance(model.get_submodule(layer), nn.Linear)}
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(pruned)))
    for layer, mask in pruned.items() if mask_products else ():
        with_lora = adapted.base_model.model.get_submodule(layer)
        with_lora.forward = partial(masked_forward, with_lora, mask)
    run_trainer(adapted, dataset, **{"learning_rate": 3e-3} | options)
    merged = adapted.merge_and_unload()
    for name, mask in masks.items():
        weight = merged.get_parameter(name)
        weight.data.masked_fill_(~mask.to(weight.device), 0)
    return merged


def masked_forward(with_lora, mask, inputs):
    """Return the output of a linear layer with its weight and the kept part of LoRA's product."""
    layer = with_lora.get_base_layer()
    product = with_lora.get_delta_weight("default") * mask.to(inputs.device)  # [d_out, d_in], float32
    return functional.linear(inputs, layer.weight + product.to(layer.weight.dtype), layer.bias)


def run_trainer(model, dataset, **options):
    with TemporaryDirectory() as folder:
        settings = {"per_device_train_batch_size": 4, "max_steps": 40, "save_strategy": "no", "report_to": "none"}
        arguments = TrainingArguments(folder, disable_tqdm=True, **settings | options)
        Trainer(model, arguments, train_dataset=dataset).train()


def main(**options):
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    result = sparseswaps.prune(model, tokenizer, "60%", samples=64, seqlen=256)
    ids, _ = draw(load("embedded", "calibration"), tokenizer, samples=160, held_out=0, seqlen=256, seed=1)
    dataset = [{"input_ids": row, "labels": row} for row in ids]
    models = {"pruned to 60 %": model}
    models["all weights trained"] = train_all(deepcopy(model), result.masks, dataset, **options)
    if find_spec("peft") is not None:
        for name, mask_products in (("LoRA, masked products", True), ("LoRA, masked after merge", False)):
            models[name] = train_lora(deepcopy(model), result.masks, dataset, mask_products=mask_products, **options)
    evaluation = windows(tokenize(tokenizer, "\n\n".join(load("embedded", "evaluation"))), seqlen=256, limit=64)
    print(f"\nperplexity on {len(evaluation)} windows of 256 tokens of held-out text, and the share of zeros")
    for name, trained in models.items():
        weights = [trained.get_parameter(parameter) for parameter in result.masks]
        assert all(torch.equal(weight != 0, mask) for weight, mask in zip(weights, result.masks.values(), strict=True))
        zeros = sum((weight == 0).sum() for weight in weights) / sum(weight.numel() for weight in weights)
        print(f"{name:24} {perplexity(trained.cpu().eval(), evaluation).perplexity:6.2f} {zeros:8.1%}")


if __name__ == "__main__":
    main()
