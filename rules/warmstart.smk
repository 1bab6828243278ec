rule warmstart:
    """Make the first masks of one block by a criterion, or take them from where they were made."""
    input:
        unpack(allocated),
        start=lambda wildcards: start_files(wildcards.warmstart),
        model="<results>/{model}/model.json",
        gram="<results>/<draw>/gram/{block}.safetensors",
    output:
        "<results>/<start>/masks/{block}.safetensors",
    log:
        "<logs>/<start>/warmstart.{block}.log",
    benchmark:
        "<logs>/<start>/warmstart.{block}.tsv"
    wildcard_constraints:
        calibration=PROPAGATES["dense"],
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        **resources("warmstart"),
        gpu=GPU,
    params:
        key=keyed(warmstart_key),
    script:
        "../scripts/warmstart.py"
