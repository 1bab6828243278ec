rule assemble:
    """Write the pruned checkpoint: the dense one, with zeros where the mask file says so, and reconstructed weights."""
    input:
        model="<results>/{model}/model.json",
        masks="<results>/<cell>/masks.safetensors",
        weights=weights_of_blocks,
    output:
        checkpoint=directory("<results>/<cell>/checkpoint"),
    log:
        "<logs>/<cell>/assemble.log",
    benchmark:
        "<logs>/<cell>/assemble.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("assemble"),
    params:
        **provenance("assemble"),
    script:
        "../scripts/assemble.py"
