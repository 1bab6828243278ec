rule samples:
    """Draw and tokenise the calibration sequences and the held-out sequences."""
    input:
        text=lambda wildcards: text_files(STUDY.calibrations[wildcards.calibration]),
        model="<results>/{model}/model.json",
    output:
        samples="<results>/<draw>/samples.safetensors",
    log:
        "<logs>/<draw>/samples.log",
    benchmark:
        "<logs>/<draw>/samples.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("samples"),
    params:
        **provenance("samples"),
    script:
        "../scripts/samples.py"
