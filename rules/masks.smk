rule masks:
    """Put the masks of all blocks into one file, each in its tensor's shape, and check what they keep."""
    input:
        unpack(allocation_file),
        model="<results>/{model}/model.json",
        masks=masks_of_blocks,
    output:
        masks="<results>/<cell>/masks.safetensors",
    log:
        "<logs>/<cell>/masks.log",
    benchmark:
        "<logs>/<cell>/masks.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("masks"),
    params:
        **provenance("masks"),
    script:
        "../scripts/masks.py"
