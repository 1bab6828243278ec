rule warmstart:
    """Make the first masks of one block by a criterion."""
    input:
        model=MODEL + "/model.json",
        gram=DRAW + "/gram/{block}.safetensors",
    output:
        START + "/masks/{block}.safetensors",
    log:
        "logs/{model}/{calibration}/seed{seed}/{pattern}/{warmstart}/warmstart.{block}.log",
    benchmark:
        "logs/{model}/{calibration}/seed{seed}/{pattern}/{warmstart}/warmstart.{block}.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=memory(weights=1),
    params:
        key=lambda wildcards: key(
            "warmstart",
            {"pattern": PATTERNS[wildcards.pattern].label, "criterion": wildcards.warmstart},
            packages=("torch",),
        ),
    script:
        "../scripts/warmstart.py"
