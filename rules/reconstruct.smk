rule reconstruct:
    """Fit the kept weights of one block to its refined masks, and measure every layer's error again."""
    input:
        model="<results>/{model}/model.json",
        grams="<results>/<draw>/gram",
        masks="<results>/<refined>/masks/{block}.safetensors",
        losses="<results>/<refined>/losses/{block}.csv",
    output:
        weights="<results>/<rebuilt>/weights/{block}.safetensors",
        losses="<results>/<rebuilt>/losses/{block}.csv",
    log:
        "<logs>/<rebuilt>/reconstruct.{block}.log",
    benchmark:
        "<logs>/<rebuilt>/reconstruct.{block}.tsv"
    wildcard_constraints:
        calibration=PROPAGATES["dense"],
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **resources("reconstruct"),
        gpu=GPU,
    params:
        **provenance("reconstruct"),
    script:
        "../scripts/reconstruct.py"
