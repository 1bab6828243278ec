rule samples:
    """Draw and tokenise the calibration sequences and the held-out ones."""
    input:
        text=lambda wildcards: text_file(config["calibrations"][wildcards.calibration]),
        model="<results>/{model}/model.json",
    output:
        "<results>/<draw>/samples.safetensors",
    log:
        "<logs>/<draw>/samples.log",
    benchmark:
        "<logs>/<draw>/samples.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("samples"),
    params:
        key=keyed(samples_key),
    script:
        "../scripts/samples.py"
