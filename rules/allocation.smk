rule allocation:
    """Say how sparse each layer becomes, where a pattern is not the same for all layers."""
    input:
        model="<results>/{model}/model.json",
        grams=lambda wildcards: ["<results>/<draw>/gram"] if GRID.patterns[wildcards.pattern].owl else [],
    output:
        allocation="<results>/<draw>/{pattern}/allocation.json",
    log:
        "<logs>/<draw>/{pattern}/allocation.log",
    benchmark:
        "<logs>/<draw>/{pattern}/allocation.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("allocation"),
    params:
        **provenance("allocation"),
    script:
        "../scripts/allocation.py"
