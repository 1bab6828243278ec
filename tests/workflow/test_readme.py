"""README's commands and code are run as they stand there."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers import README, REPOSITORY, bash, blocks, checkout, commands, on_a_cluster, write_tiny_model

from sparseswaps.layer import criteria
from sparseswaps.layer.pattern import parse_pattern

# What takes long, by the file that runs it.
ELSEWHERE = {"make run": ".ci/run", "make test": ".ci/run", 'pip install ".[slurm]"': "Makefile"}
# What the example names that is not at hand, and what is put in its place.
STAND_INS = {
    "path/to/model": "model",
    "text: c4, samples: 128, held_out: 16, seqlen: 2048": "text: text.txt, samples: 8, held_out: 4, seqlen: 32",
    "text: wikitext2, seqlen: 2048": "text: text.txt, seqlen: 32, windows: 8",
    "gpu: true": "gpu: false",
}


def test_every_command_is_run():
    """By a test below, by what `ELSEWHERE` says, or on a cluster."""
    every = [line for block in blocks("sh") for line in commands(block)]
    own = [line for block in blocks("sh") if "mine.yaml" in block for line in commands(block)]
    assert set(every) - {*own, *on_a_cluster()} == set(ELSEWHERE)
    for command, file in ELSEWHERE.items():
        assert command.partition(" ")[2].split()[-1] in (REPOSITORY / file).read_text(encoding="utf-8"), command


def test_my_own_model(tmp_path):
    environment = checkout(tmp_path)
    study = next(block for block in blocks("yaml") if "mine.yaml" in block)
    for named, stand_in in STAND_INS.items():
        assert named in study
        study = study.replace(named, stand_in)
    (tmp_path / "mine.yaml").write_text(study)
    write_tiny_model(tmp_path / "model", num_hidden_layers=1)
    (tmp_path / "text.txt").write_text("\n\n".join(map(str, range(3000))))
    block = next(block for block in blocks("sh") if "mine.yaml" in block)
    said = bash("set +u\n" + block, tmp_path, environment)
    cells = yaml.safe_load(study)
    folder = tmp_path / "results" / "my-model" / "c4" / "seed0" / "60pct" / cells["warmstarts"][0]
    for method in ("none", "swaps", "none+ls", "swaps+ls"):
        assert (folder / method / "checkpoint" / "model.safetensors").is_file(), said
    assert (tmp_path / "results" / "reports" / "mine" / "report.html").is_file()
    assert "in all" in said  # the plan
    # What stands in the text rather than in a block.
    for command in re.findall(r"`(snakemake [^`]+)`", README):
        bash(f"set +u; source .venv/bin/activate; {command} -n --configfile mine.yaml", tmp_path, environment)


def test_a_criterion():
    code = next(block for block in blocks("python") if "@rank_by" in block)
    names = {"rank_by": criteria.rank_by}
    exec(code, names)
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(8, 16, generator=generator), torch.randn(16, 40, generator=generator)
    layer = (weight, inputs @ inputs.T, parse_pattern("60%"))
    assert torch.equal(names["wanda"](*layer), criteria.WARMSTARTS["wanda"](*layer))


def test_without_snakemake(tmp_path, tiny_model, monkeypatch):
    code = next(block for block in blocks("python") if "sparseswaps.prune" in block)
    code = code.replace("path/to/model", str(tiny_model)).replace("seqlen=512", "seqlen=32, samples=8, held_out=4")
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text("".join(f'{{"text": "{" ".join(map(str, range(k, k + 90)))}"}}\n' for k in range(40)))
    names = {}
    exec(code, names)
    zeros = [names["model"].get_parameter(name) == 0 for name in names["result"].masks]
    assert zeros
    assert all((zero.view(len(zero), -1, 4).sum(-1) == 2).all() for zero in zeros)


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("*.md")) + sorted(REPOSITORY.glob("docs/*.md")), ids=lambda p: p.name
)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (path.parent / link).exists(), link
