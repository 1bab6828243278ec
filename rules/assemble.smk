rule assemble:
    """Put the masks of all blocks into one file and write the pruned checkpoint."""
    input:
        model="<results>/{model}/model.json",
        masks=of_blocks("<results>/<cell>/masks", "safetensors"),
    output:
        masks="<results>/<cell>/masks.safetensors",
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
        key=lambda wildcards: key(
            "assemble", {"pattern": PATTERNS[wildcards.pattern].label}, packages=("torch", "safetensors")
        ),
    script:
        "../scripts/assemble.py"
