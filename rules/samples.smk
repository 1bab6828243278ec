def samples_settings(wildcards):
    return {**config["calibrations"][wildcards.calibration], "seed": int(wildcards.seed)}


def text_file(settings):
    """An input list: the text's file, unless it is the embedded one."""
    return [] if settings["text"] == "embedded" else [settings["text"]]


rule samples:
    """Draw and tokenise the calibration sequences and the held-out ones."""
    input:
        text=lambda wildcards: text_file(config["calibrations"][wildcards.calibration]),
        model=MODEL + "/model.json",
    output:
        DRAW + "/samples.safetensors",
    log:
        "logs/{model}/{calibration}/seed{seed}/samples.log",
    benchmark:
        "logs/{model}/{calibration}/seed{seed}/samples.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=memory(weights=0),
    params:
        key=lambda wildcards: key("samples", samples_settings(wildcards)),
    script:
        "../scripts/samples.py"
