rule chain:
    """With `propagate: pruned`, prune one block on the outputs of the pruned blocks before it.

    Each job hands the hidden states of all sequences on to the next block's job; Snakemake then deletes them. The file
    of weights holds none where the kept weights are not reconstructed.
    """
    input:
        unpack(allocation_file),
        unpack(hidden_states),
        start=start_files,
        model="<results>/{model}/model.json",
        samples="<results>/<draw>/samples.safetensors",
    output:
        masks="<results>/<cell>/masks/{block}.safetensors",
        losses="<results>/<cell>/losses/{block}.csv",
        curves="<results>/<cell>/curves/{block}.csv",
        epochs="<results>/<cell>/epochs/{block}.csv",
        weights="<results>/<cell>/weights/{block}.safetensors",
        hidden=temp(directory("<results>/<cell>/hidden/{block}")),
    log:
        "<logs>/<cell>/chain.{block}.log",
    benchmark:
        "<logs>/<cell>/chain.{block}.tsv"
    wildcard_constraints:
        calibration=PROPAGATES["pruned"],
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **resources("chain"),
        gpu=GPU,
    params:
        **provenance("chain"),
    script:
        "../scripts/chain.py"
