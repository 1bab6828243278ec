rule warmstart:
    """Make the first masks of one block by a criterion, or import them."""
    input:
        unpack(allocation_file),
        start=start_files,
        model="<results>/{model}/model.json",
        grams="<results>/<draw>/gram",
    output:
        masks="<results>/<start>/masks/{block}.safetensors",
    log:
        "<logs>/<start>/warmstart.{block}.log",
    benchmark:
        "<logs>/<start>/warmstart.{block}.tsv"
    wildcard_constraints:
        calibration=PROPAGATES["dense"],
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **resources("warmstart"),
        gpu=GPU,
    params:
        **provenance("warmstart"),
    script:
        "../scripts/warmstart.py"
