rule model:
    """Check a model's files and describe them: tensors and their hashes, decoder blocks, linear layers."""
    input:
        files=lambda wildcards: model_files(STUDY.models[wildcards.model]),
    output:
        model="<results>/{model}/model.json",
    log:
        "<logs>/{model}/model.log",
    benchmark:
        "<logs>/{model}/model.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("model"),
    params:
        **provenance("model"),
    script:
        "../scripts/model.py"
