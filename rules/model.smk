rule model:
    """Check a model's files and describe them: tensors and their hashes, decoder blocks, linear layers."""
    input:
        lambda wildcards: model_files(config["models"][wildcards.model]["source"]),
    output:
        update("<results>/{model}/model.json"),
    log:
        "<logs>/{model}/model.log",
    benchmark:
        "<logs>/{model}/model.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("model"),
    params:
        key=lambda wildcards: key("model", {"source": config["models"][wildcards.model]["source"]}),
    script:
        "../scripts/model.py"
