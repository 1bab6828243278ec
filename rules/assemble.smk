rule assemble:
    """Put the masks of all blocks into one file and write the pruned checkpoint."""
    input:
        model=MODEL + "/model.json",
        masks=blocks(CELL + "/masks/{block}.safetensors"),
    output:
        masks=CELL + "/masks.safetensors",
        checkpoint=directory(CELL + "/checkpoint"),
    log:
        "logs/{model}/{calibration}/seed{seed}/{pattern}/{warmstart}/{refinement}/assemble.log",
    benchmark:
        "logs/{model}/{calibration}/seed{seed}/{pattern}/{warmstart}/{refinement}/assemble.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=memory(weights=1),
    params:
        key=lambda wildcards: key(
            "assemble", {"pattern": PATTERNS[wildcards.pattern].label}, packages=("torch", "safetensors")
        ),
    script:
        "../scripts/assemble.py"
