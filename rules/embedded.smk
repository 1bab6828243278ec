rule embedded_model:
    """Train the embedded model again, from nothing (hours on a CPU); no other rule asks for this."""
    output:
        directory("<results>/embedded-model"),
    log:
        "<logs>/embedded-model.log",
    benchmark:
        "<logs>/embedded-model.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    params:
        key=key("embedded_model", {}),
    script:
        "../scripts/embedded_model.py"
