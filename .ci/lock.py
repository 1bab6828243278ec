"""Write the files of envs/: the versions of all packages that this environment has installed, and the lowest versions.

lock.txt pins what published figures were made with, and the tools that check the code. The conda environments of the
workflow's jobs are at the versions of the lock, too: sparseswaps.yaml is what the package and its extra `workflow`
need; report.yaml is what the rules of rules/report.smk need, which do without torch. lowest.txt pins the lowest
versions that pyproject.toml allows.
"""

import subprocess
import sys
from importlib.metadata import distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENVS = Path(__file__).parent.parent / "envs"
LOCK = """\
# Written by `make lock`. `pip install --constraint envs/lock.txt "sparseswaps[workflow]"` installs these versions.
"""
ENVIRONMENT = """\
# Written by `make lock`, for `snakemake --sdm conda`.
channels: [conda-forge]
dependencies:
  - python=3.11
  - pip
  - pip:
"""
ENVIRONMENTS = {"sparseswaps.yaml": ["sparseswaps[workflow]"]}
ENVIRONMENTS["report.yaml"] = ["jinja2", "lazy_loader", "matplotlib", "pandas", "pydantic", "pyyaml", "safetensors"]
ENVIRONMENTS["report.yaml"] += ["tabulate", "tqdm"]


def installed_versions() -> dict[str, str]:
    """Return the versions of all installed packages but this one, by name. The build, such as +cpu, is left out."""
    versions = {canonicalize_name(package.name): package.version.partition("+")[0] for package in distributions()}
    return {name: versions[name] for name in sorted(versions.keys() - {"sparseswaps", "pip", "uv"})}


def names_needed(requirements: list[str]) -> set[str]:
    """Return the names of packages, and of the packages that these need, directly or not."""
    waiting = [Requirement(requirement) for requirement in requirements]
    names = {canonicalize_name(requirement.name) for requirement in waiting}
    while waiting:
        requirement = waiting.pop()
        for line in requires(requirement.name) or []:
            needed = Requirement(line)
            environments = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            name = canonicalize_name(needed.name)
            if (needed.marker is None or any(map(needed.marker.evaluate, environments))) and name not in names:
                names.add(name)
                waiting.append(needed)
    return names


def write_lowest() -> None:
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--no-annotate",
        "--resolution",
        "lowest-direct",
    ]
    command += ["--extra", "test", "--python-version", "3.11", "--custom-compile-command", "make lock"]
    subprocess.run([*command, "--output-file", ENVS / "lowest.txt", ENVS.parent / "pyproject.toml"], check=True)


if __name__ == "__main__":
    versions = installed_versions()
    (ENVS / "lock.txt").write_text(LOCK + "".join(f"{name}=={version}\n" for name, version in versions.items()))
    for name, requirements in ENVIRONMENTS.items():
        needed = names_needed(requirements)
        pins = "".join(f"      - {name}=={version}\n" for name, version in versions.items() if name in needed)
        (ENVS / name).write_text(ENVIRONMENT + pins)
    write_lowest()
