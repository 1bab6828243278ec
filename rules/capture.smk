rule capture:
    """Run the calibration text through the model; keep the Gram matrices of every block's distinct inputs."""
    input:
        model="<results>/{model}/model.json",
        samples="<results>/<draw>/samples.safetensors",
    output:
        grams=directory("<results>/<draw>/gram"),
    log:
        "<logs>/<draw>/capture.log",
    benchmark:
        "<logs>/<draw>/capture.tsv"
    wildcard_constraints:
        calibration=PROPAGATES["dense"],
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **resources("capture"),
        gpu=GPU,
    params:
        **provenance("capture"),
    script:
        "../scripts/capture.py"
