def weighted_keys(at):
    """The key of the stage that made a cell's weights, if they are new and not made along with its masks."""
    refinement, _, reconstruction = at["method"].partition("+")
    if not reconstruction or config["calibrations"][at["calibration"]]["propagate"] == "pruned":
        return []
    return [reconstruct_key({**at, "refinement": refinement, "reconstruction": reconstruction})]


def assemble_key(at):
    settings = {"pattern": PATTERNS[at["pattern"]].label}
    before = [masks_key(at), *weighted_keys(at)]
    return key("assemble", settings, packages=("torch", "safetensors"), after=before)


rule assemble:
    """Write the pruned checkpoint: the dense one, with zeros where the mask file says so, and reconstructed weights."""
    input:
        model="<results>/{model}/model.json",
        masks="<results>/<cell>/masks.safetensors",
        weights=weights_of_blocks,
    output:
        directory("<results>/<cell>/checkpoint"),
    log:
        "<logs>/<cell>/assemble.log",
    benchmark:
        "<logs>/<cell>/assemble.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("assemble"),
    params:
        key=keyed(assemble_key),
    script:
        "../scripts/assemble.py"
