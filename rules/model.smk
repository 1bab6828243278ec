rule model:
    """Check a model's files and describe them: tensors and their hashes, decoder blocks, linear layers."""
    input:
        lambda wildcards: model_files(wildcards.model),
    output:
        "<results>/{model}/model.json",
    log:
        "<logs>/{model}/model.log",
    benchmark:
        "<logs>/{model}/model.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("model"),
    params:
        key=keyed(model_key),
    script:
        "../scripts/model.py"
