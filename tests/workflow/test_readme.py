"""The commands and code of the documents run as they are."""

import ast
import os
import re
import shlex
from pathlib import Path

import networkx
import pandas
import pytest
import snakemake.exceptions
import torch
import yaml
from helpers import (
    REPOSITORY,
    Workflow,
    bash,
    checkout,
    cluster_commands,
    code_blocks,
    commands,
    read_document,
    write_tiny_model,
)

import sparseswaps
from sparseswaps.__main__ import main
from sparseswaps.layer import criteria
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.model.loading import load_model
from sparseswaps.workflow.stages import STAGES

QUALITY = "docs/quality.md"
DOCUMENTS = ["README.md", "docs/study.md", "docs/slurm.md"]
PAGES = sorted(path.relative_to(REPOSITORY) for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
INSTALLATION = 'pip install ".[slurm]"'
# What the example of a study needs, and what replaces it here.
STAND_INS = {
    "path/to/model": "model",
    "text: c4, samples: 128, held_out: 16, seqlen: 2048": "text: text.txt, samples: 8, held_out: 4, seqlen: 32",
    "text: wikitext2, seqlen: 2048": "text: text.txt, seqlen: 32, windows: 8",
    "gpu: true": "gpu: false",
}


@pytest.fixture
def run_by_ci(tmp_path) -> list[str]:
    """The commands that .ci/run executes: every program that it may find does nothing but note its name and words."""
    stub = '#!/bin/sh\necho "$(basename "$0") $*" >> "$NOTES"; echo "Nothing to be done"\n'
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text(read_document(".ci/run"))
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("make", "dpkg", "apt-get", "snakemake", "python"):
        (programs / name).write_text(stub)
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes")}
    bash("bash .ci/run", tmp_path, environment)
    return (tmp_path / "notes").read_text().splitlines()


def test_every_command_is_run(run_by_ci):
    """By .ci/run, by a test below, or by tests/slurm."""
    every = {line for document in DOCUMENTS for block in code_blocks(document, "sh") for line in commands(block)}
    own = commands(code_blocks("docs/study.md", "sh")[0])
    command_line = {line for line in every if line.startswith("sparseswaps ")}
    assert every - {*own, *cluster_commands(), *command_line, INSTALLATION} == {"make run", "make test"}
    tests = {"make test", *(f"make test-{group}" for group in ("lowest", "newest", "slow", "slurm"))}
    assert {"make run", *tests} <= set(run_by_ci)
    recipes = [shlex.split(line) for line in read_document("Makefile").splitlines() if line.startswith("\t")]
    assert any("$(INSTALL)" in words and words[-1] == shlex.split(INSTALLATION)[-1] for words in recipes)


def test_the_study(tmp_path):
    environment = checkout(tmp_path)
    study = code_blocks("docs/study.md", "yaml")[0]
    for named, stand_in in STAND_INS.items():
        assert named in study
        study = study.replace(named, stand_in)
    (tmp_path / "mine.yaml").write_text(study)
    write_tiny_model(tmp_path / "model", num_hidden_layers=1)
    (tmp_path / "text.txt").write_text("\n\n".join(map(str, range(3000))))
    output = bash("set +u\n" + code_blocks("docs/study.md", "sh")[0], tmp_path, environment)
    cells = yaml.safe_load(study)
    folder = tmp_path / "results" / "my-model" / "c4" / "seed0" / "60pct" / cells["warmstarts"][0]
    for method in ("none", "swaps", "none+ls", "swaps+ls"):
        assert (folder / method / "checkpoint" / "model.safetensors").is_file(), output
    assert (tmp_path / "results" / "reports" / "mine" / "report.html").is_file()
    for command in re.findall(r"`(snakemake --resources [^`]+)`", read_document("docs/slurm.md")):
        bash(f"set +u; source .venv/bin/activate; {command} -n --configfile mine.yaml", tmp_path, environment)


def test_a_criterion():
    names = {"rank_by": criteria.rank_by}
    exec(code_blocks("CONTRIBUTING.md", "python")[0], names)
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(8, 16, generator=generator), torch.randn(16, 40, generator=generator)
    layer = (weight, inputs @ inputs.T, parse_pattern("60%"))
    assert torch.equal(names["wanda"](*layer), criteria.WARMSTARTS["wanda"](*layer))


@pytest.fixture
def text(tmp_path, monkeypatch):
    """Go to a folder with the calibration text of README's commands."""
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text("".join(f'{{"text": "{" ".join(map(str, range(k, k + 90)))}"}}\n' for k in range(40)))


def test_without_snakemake(text, tiny_model):
    first, second = (
        code.replace("path/to/model", str(tiny_model)).replace("seqlen=512", "seqlen=32, samples=8, held_out=4")
        for code in code_blocks("README.md", "python")
    )
    names = {}
    exec(first, names)
    zeros = [names["model"].get_parameter(name) == 0 for name in names["result"].masks]
    assert zeros
    assert all((zero.view(len(zero), -1, 4).sum(-1) == 2).all() for zero in zeros)
    compressed = sparseswaps.load_compressed("compressed").state_dict()
    assert all(
        torch.equal(compressed[name], tensor) for name, tensor in load_model("pruned", "cpu").state_dict().items()
    )
    names["model"] = model = load_model(str(tiny_model), "cpu")
    exec(second, names)
    for weight in map(model.get_parameter, names["result"].masks):
        assert ((weight == 0).sum(1) == weight.shape[1] * 6 // 10).all()


def test_the_command_line(text, tiny_model, capsys):
    block = next(block for block in code_blocks("README.md", "sh") if "sparseswaps" in block)
    for line in commands(block):
        line = line.replace("path/to/model", str(tiny_model)).replace("--seqlen 512", "--seqlen 32 --samples 8")
        main(shlex.split(line, comments=True)[1:])
    printed = capsys.readouterr().out
    assert "50.0%" in printed
    assert "2:4" in printed
    assert len(list(Path("compressed").glob("*.sparse.safetensors"))) == 1


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_named_files_exist(page):
    text = read_document(page)
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (REPOSITORY / page.parent / link).exists(), link
    if page.name != "CHANGELOG.md":  # names files that are no longer there
        for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|smk|md|j2))`", text):
            assert (REPOSITORY / name).exists() or (REPOSITORY / "sparseswaps" / name).exists(), name


def test_the_picture_of_the_rules_is_that_of_snakemake(tmp_path):
    (tmp_path / "study").mkdir()
    study = yaml.safe_load(read_document("docs/rulegraph.yaml"))
    printed = Workflow(tmp_path / "study").run(study, "--rulegraph").stdout
    drawn = read_document("docs/rulegraph.svg")
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', printed, re.MULTILINE))
    nodes = dict(re.findall(r"<title>(\d+)</title>.*?<text [^>]*>(\w+)</text>", drawn, re.DOTALL))
    edges = [(names[first], names[second]) for first, second in re.findall(r"(\d+) -> (\d+)", printed)]
    arrows = [(nodes[first], nodes[second]) for first, second in re.findall(r"<title>(\d+)&#45;&gt;(\d+)<", drawn)]
    assert set(nodes.values()) == {"all", *STAGES}
    graph, picture = (networkx.transitive_closure(networkx.DiGraph(pairs)) for pairs in (edges, arrows))
    assert set(picture.edges) == set(graph.edges), "the picture is stale: run `make rulegraph`, commit it"


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code():
    """Between their variable parts, which the page writes as three dots."""
    sources = [*(REPOSITORY / "sparseswaps").rglob("*.py"), Path(snakemake.exceptions.__file__)]
    nodes = (node for path in sources for node in ast.walk(ast.parse(path.read_text())))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    sections = read_document("docs/troubleshooting.md").split("\n## ")
    rows = [line for part in sections if part.startswith("It does not run") for line in part.splitlines()]
    messages = [quote for row in rows for quote in re.findall(r"`([^`]* [^`]*)`", row.partition(" | ")[0])]
    assert len(messages) > 20
    for message in messages:
        for fixed in message.split("..."):
            assert any(fixed.strip() in text for text in texts), message


def table_rows(document: str, name: str) -> list[list[str]]:
    """Return the rows of the tables that `make readme` writes below a name into a document, heading rows included."""
    section = read_document(document).partition(f"<!-- begin: {name}")[2].partition("<!-- end -->")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line[:1] == "|" and "--" not in line]
    return [[cell.strip(" *") for cell in row] for row in rows]


def words_of(document: str) -> str:
    """Return a document without its line breaks."""
    return " ".join(read_document(document).split())


def test_the_gaps_that_are_quoted_of_the_real_model_are_those_of_the_readmes_table():
    readme, quality = map(words_of, ("README.md", QUALITY))
    _, *rows = table_rows("README.md", "results of configs/smollm2-pip.yaml")
    at_60 = {name: [float(cell.replace(",", "")) for cell in cells[:2]] for name, *cells in rows}
    trained, sparsegpt, admm = (
        [value - dense for value, dense in zip(at_60[name], at_60["dense"], strict=True)]
        for name in ("blocks trained while masks tighten", "SparseGPT (new weights)", "ADMM (new weights)")
    )
    gaps = [[one / other for one, other in zip(trained, others, strict=True)] for others in (sparsegpt, admm)]
    wikipedia, c4 = gaps[0]
    assert f"on SmolLM2 at 60 % it is {c4:.1f} to {wikipedia:.1f} of SparseGPT's" in readme
    assert f"is {wikipedia:.2f} of SparseGPT's on WikiText-2 and {c4:.2f} on C4" in quality
    assert f"and {gaps[1][0]:.2f} and {gaps[1][1]:.2f} of ADMM's" in quality


def test_what_is_quoted_of_further_patterns_is_of_the_tables():
    rows = [row for row in table_rows(QUALITY, "smollm2-patterns") if row[0] != "model"]
    gains, times = [], []
    for table in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):  # WikiText-2, C4
        values = {tuple(row[2:4]): [float(cell) for cell in row[4:]] for row in table}
        dense, best = values.pop(("-", "dense")), values["wanda", "swaps+ls"]
        assert best == [min(column) for column in zip(*values.values(), strict=True)]
        sparsegpt = values["sparsegpt", "none+sparsegpt"]
        gains.append([f"{100 * (1 - one / other):.0f}" for one, other in zip(best, sparsegpt, strict=True)])
        times.append([one / other for one, other in zip(best, dense, strict=True)])
    quality, (wikitext2, c4) = words_of(QUALITY), ("{}, {} and {} %".format(*row) for row in gains)
    assert f"They are {wikitext2} below SparseGPT on WikiText-2 at 70 %, 4:8 and 6:8, and {c4} on C4" in quality
    wikitext2, c4 = times
    assert f"is {wikitext2[0]:.1f} times the dense model's on WikiText-2 and {c4[0]:.1f} times on C4" in quality
    assert f"it is {wikitext2[2]:.2f} times on both" in quality
    assert f"{wikitext2[2]:.2f}" == f"{c4[2]:.2f}"


def test_what_is_quoted_of_dense_targets_before_trained_blocks_is_of_the_tables():
    def at_60(name: str, calibration: str, method: str) -> tuple[float, ...]:
        rows = table_rows(QUALITY, f"{name} -->")
        return tuple(float(row[4]) for row in rows if (row[1], row[3]) == (calibration, method))  # WikiText-2, C4

    both = at_60("smollm2-targets", "c4-ordered", "swaps+gradual")
    trained = at_60("smollm2-pip", "c4-pruned", "swaps+gradual")
    (targets,) = (float(row[5]) for row in table_rows(QUALITY, "smollm2-more") if row[1] == "c4-ordered")
    quality = words_of(QUALITY)
    assert "Both together end at {:.1f} on WikiText-2 and {:.1f} on C4".format(*both) in quality
    ends = "Trained blocks alone end at {:.1f} and {:.1f}".format(*trained)
    assert f"{ends}, and dense targets alone at {targets:.1f} on WikiText-2" in quality


def test_the_gains_that_are_quoted_of_dense_targets_in_order_are_those_of_the_table():
    _, *rows = table_rows(QUALITY, "smollm2-more")
    table = {tuple(row[1:4]): [float(cell) for cell in row[5:]] for row in rows if "-" not in row[5:]}  # 60 %, 2:4
    ordered = table["c4-ordered", "wanda", "swaps+ls"]
    others = [table["c4", "admm", "none+admm"], table["c4-pruned", "sparsegpt", "none+sparsegpt"]]
    gains = [[f"{1 - one / other:.0%}"[:-1] for one, other in zip(ordered, row, strict=True)] for row in others]
    admm, sparsegpt = (" and ".join(pair) for pair in gains)
    ends = "end at {:.1f} at 60 % and {:.1f} at 2:4".format(*ordered)
    assert f"{ends}: {admm} % below ADMM, the next best, and {sparsegpt} % below SparseGPT" in words_of(QUALITY)
    pruned = [row for key, row in table.items() if key[2] != "dense"]
    for column in range(2):
        assert sorted(row[column] for row in pruned)[:2] == [ordered[column], others[0][column]]


def recipes(model: str) -> tuple[pandas.Series, pandas.DataFrame]:
    """Return the table of a model's recipes in docs/quality.md: perplexities by pattern, dense and of each recipe."""
    heading, *rows = table_rows(QUALITY, f"recipes-{model} ")
    table = pandas.DataFrame(rows, columns=heading).set_index(["calibration", "from", "refinement"])
    table = table.drop(columns="model").apply(pandas.to_numeric, errors="coerce")
    dense = table.index.get_level_values("refinement") == "dense"
    return table[dense].iloc[0], table[~dense]


def test_the_ranges_that_are_quoted_of_the_recipes_are_those_of_the_tables():
    quality, readme = map(words_of, (QUALITY, "README.md"))
    gaps, targets = {}, {}
    for model in ("embedded", "stories260k", "babyllama105"):
        dense, table = recipes(model)
        trained, fitted = table.loc["pruned", "wanda", "swaps+gradual"], table.loc["pruned", "wanda", "swaps+ls"]
        gaps[model] = (trained - dense) / (table.loc["pruned", "sparsegpt", "none+sparsegpt"] - dense)
        targets[model] = 100 * (1 - table.loc["ordered", "wanda", "swaps+ls"] / fitted)
        for other in (("pruned", "admm", "none+admm"), ("pruned", "alps", "none+ls"), ("ordered", "wanda", "swaps+ls")):
            assert (trained < table.loc[other]).all()
    low, high = (f"{bound:.1f}" for bound in (pandas.concat(gaps).min(), pandas.concat(gaps).max()))
    assert f"is {low} to {high} of SparseGPT's" in readme
    assert f"by {pandas.concat(targets).min():.0f} to {pandas.concat(targets).max():.0f} %" in readme
    ranges = {model: f"{gap.min():.2f} {{}} {gap.max():.2f}" for model, gap in gaps.items()}
    assert f"{ranges['embedded'].format('to')} of SparseGPT's on the embedded model" in quality
    assert f"{ranges['stories260k'].format('to')} on stories260K" in quality
    assert f"{ranges['babyllama105'].format('and')} on babyllama105" in quality
    assert f"{targets['embedded'].min():.0f} to {targets['embedded'].max():.0f} % on the embedded model" in quality
    assert f"{targets['stories260k'].min():.0f} to {targets['stories260k'].max():.0f} % on stories260K" in quality
    assert f"{targets['babyllama105'].max():.0f} % on babyllama105" in quality
