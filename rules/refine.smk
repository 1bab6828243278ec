rule refine:
    """Refine the masks of one block by exact 1-swaps, and measure every layer's error before and after."""
    input:
        model="<results>/{model}/model.json",
        gram="<results>/<draw>/gram/{block}.safetensors",
        masks="<results>/<start>/masks/{block}.safetensors",
    output:
        masks=update("<results>/<cell>/masks/{block}.safetensors"),
        losses=update("<results>/<cell>/losses/{block}.csv"),
    log:
        "<logs>/<cell>/refine.{block}.log",
    benchmark:
        "<logs>/<cell>/refine.{block}.tsv"
    wildcard_constraints:
        calibration=PROPAGATES["dense"],
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        **resources("refine"),
        gpu=GPU,
    params:
        key=lambda wildcards: key(
            "refine",
            {"pattern": PATTERNS[wildcards.pattern].label, **config["refinements"][wildcards.refinement], **COMPUTE},
            packages=("torch", "numba"),
        ),
    script:
        "../scripts/refine.py"
