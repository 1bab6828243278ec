"""README's commands and code are run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, write_tiny_model
from transformers import AutoModelForCausalLM

from sparseswaps import criteria
from sparseswaps.pattern import parse_pattern

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What takes long, by the file that runs it.
ELSEWHERE = {"make run": ".ci/run", "make test": ".ci/run", 'pip install ".[slurm]"': "Makefile"}
# What the example names that is not at hand, and what is put in its place.
STAND_INS = {
    "path/to/model": "model",
    "text: c4, samples: 128, held_out: 16, seqlen: 2048": "text: text.txt, samples: 8, held_out: 4, seqlen: 32",
    "text: wikitext2, seqlen: 2048": "text: text.txt, seqlen: 32, windows: 8",
    "gpu: true": "gpu: false",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(block: str) -> list[str]:
    return [line.partition("  #")[0].strip() for line in block.splitlines() if line and not line.startswith("#")]


def checkout(folder: Path) -> dict[str, str]:
    """A checkout with its environment, as README's reader has it; the variables of a shell in it."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (source := REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(source)
    (folder / ".venv").symlink_to(sys.prefix)
    return os.environ | {"PYTHONPATH": str(folder)}


def bash(script: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def on_a_cluster() -> list[str]:
    """The commands that tests/test_slurm.py runs, after their installation."""
    return commands(next(block for block in blocks("sh") if "profiles/slurm" in block))[1:]


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
    code = next(block for block in blocks("python") if "@by_score" in block)
    names = {"by_score": criteria.by_score}
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
    exported = next(block for block in blocks("python") if "export(" in block)
    exec(exported.replace("path/to/checkpoint", "pruned").replace("cuda", "cpu"), names)
    ids = torch.arange(32)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained("pruned")(ids).logits
        assert torch.equal(names["model"](ids).logits, expected)


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("*.md")) + sorted(REPOSITORY.glob("docs/*.md")), ids=lambda p: p.name
)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (path.parent / link).exists(), link
