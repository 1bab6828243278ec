rule refine:
    """Refine the masks of one block by exact 1-swaps, and measure every layer's error on the way."""
    input:
        unpack(allocation_file),
        model="<results>/{model}/model.json",
        grams="<results>/<draw>/gram",
        masks="<results>/<start>/masks/{block}.safetensors",
    output:
        masks="<results>/<refined>/masks/{block}.safetensors",
        losses="<results>/<refined>/losses/{block}.csv",
        curves="<results>/<refined>/curves/{block}.csv",
    log:
        "<logs>/<refined>/refine.{block}.log",
    benchmark:
        "<logs>/<refined>/refine.{block}.tsv"
    wildcard_constraints:
        calibration=PROPAGATES["dense"],
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **resources("refine"),
        gpu=GPU,
    params:
        **provenance("refine"),
    script:
        "../scripts/refine.py"
