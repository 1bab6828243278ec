rule refine:
    """Refine the masks of one block by exact 1-swaps, and measure every layer's error before and after."""
    input:
        model=MODEL + "/model.json",
        gram=DRAW + "/gram/{block}.safetensors",
        masks=START + "/masks/{block}.safetensors",
    output:
        masks=CELL + "/masks/{block}.safetensors",
        losses=CELL + "/losses/{block}.csv",
    log:
        "logs/{model}/{calibration}/seed{seed}/{pattern}/{warmstart}/{refinement}/refine.{block}.log",
    benchmark:
        "logs/{model}/{calibration}/seed{seed}/{pattern}/{warmstart}/{refinement}/refine.{block}.tsv"
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        mem_mb=memory(weights=2),
        gpu=GPU,
    params:
        key=lambda wildcards: key(
            "refine",
            {"pattern": PATTERNS[wildcards.pattern].label, **config["refinements"][wildcards.refinement], **THREADS},
            packages=("torch",),
        ),
    script:
        "../scripts/refine.py"
