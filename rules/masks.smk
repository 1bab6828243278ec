rule masks:
    """Put the masks of all blocks into one file, each of its tensor's shape, and check what they keep."""
    input:
        model="<results>/{model}/model.json",
        masks=of_blocks("<results>/<cell>/masks", "safetensors"),
    output:
        "<results>/<cell>/masks.safetensors",
    log:
        "<logs>/<cell>/masks.log",
    benchmark:
        "<logs>/<cell>/masks.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("masks"),
    params:
        key=lambda wildcards: key(
            "masks", {"pattern": PATTERNS[wildcards.pattern].label}, packages=("torch", "safetensors")
        ),
    script:
        "../scripts/masks.py"
