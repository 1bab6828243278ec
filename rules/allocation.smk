rule allocation:
    """Say how sparse each layer becomes, where a pattern is not the same for all of them."""
    input:
        model="<results>/{model}/model.json",
        grams=lambda wildcards: (
            [f"<results>/<draw>/gram/{block}.safetensors" for block in BLOCKS[wildcards.model]]
            if PATTERNS[wildcards.pattern].owl
            else []
        ),
    output:
        "<results>/<draw>/{pattern}/allocation.json",
    log:
        "<logs>/<draw>/{pattern}/allocation.log",
    benchmark:
        "<logs>/<draw>/{pattern}/allocation.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("allocation"),
    params:
        key=keyed(allocation_key),
    script:
        "../scripts/allocation.py"
