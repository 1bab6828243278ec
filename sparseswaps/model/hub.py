"""Models of the Hugging Face hub: find the commit of a revision, and download its files into the usual cache.

`huggingface_hub` is imported in the functions: most starts of the workflow need no hub, and would pay for the import.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparseswaps.base.errors import InputError, one_line
from sparseswaps.model.directory import INDEX, entry_file, indexed_files, is_companion, weight_files


def resolve(repo: str, revision: str | None) -> str:
    """Find the commit hash of a branch, tag or commit (None: `main`), and download its config.json into the cache.

    Raises InputError when the hub has no such model or revision, or does not show it; when nothing is cached and the
    hub cannot be reached; or when the model has no config.json or no safetensors files.
    """
    from huggingface_hub import resolve_revision, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import RevisionResolutionError
    from huggingface_hub.utils import disable_progress_bars

    with _explain_errors(repo, revision):
        try:
            commit = resolve_revision(repo, revision=revision, local_files_only=True).resolved
        except RevisionResolutionError:
            commit = None
        if commit is None or not isinstance(try_to_load_from_cache(repo, "config.json", revision=commit), str):
            disable_progress_bars()  # one small file, while the workflow starts
            commit = Path(snapshot_download(repo, revision=revision, allow_patterns=["config.json"])).name
    if (names := _cached_names(repo, commit)) is not None:
        if "config.json" not in names:
            raise InputError(f"{repo!r} is not a model of transformers: it has no config.json; take another")
        entry_file(repo, names)
    return commit


def download(repo: str, commit: str) -> Path:
    """Download a commit's safetensors weights and the small files beside them; return their directory in the cache.

    Raises InputError as `resolve` does, or when a weight file is missing.
    """
    from huggingface_hub import snapshot_download

    with _explain_errors(repo, commit):
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=["config.json"]))
        names = _cached_names(repo, commit)
        if names is not None:
            entry = entry_file(repo, names)
            wanted = [name for name in names if "/" not in name and is_companion(name)]
            snapshot_download(repo, revision=commit, allow_patterns=[*wanted, entry])
            if entry == INDEX:
                snapshot_download(repo, revision=commit, allow_patterns=indexed_files(folder / INDEX))
    try:
        weight_files(folder)
    except InputError:
        if names is not None:
            raise
        # Another program filled the cache, and without a network nobody knows which files are missing.
        raise InputError(f"the cache has only a part of {repo!r} ({commit}): run once with a connection") from None
    return folder


def _cached_names(repo: str, commit: str) -> list[str] | None:
    """Return the paths of all files of a commit; None when the cache holds no list of them."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(repo, revision=commit)]
    except CachedRepoTreeNotFoundError:
        return None


@contextmanager
def _explain_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of huggingface_hub for a model into one line that says what to do."""
    from httpx2 import HTTPError
    from huggingface_hub import constants, errors

    login = "log in with `hf auth login`"
    try:
        yield
        return
    except errors.GatedRepoError:
        message = f"{repo!r} is gated: ask for access at {constants.ENDPOINT}/{repo}, then {login}"
    except errors.RepositoryNotFoundError:
        message = (
            f"{repo!r} is neither a directory here nor a model that the hub shows you: check the spelling, or {login} "
            "if the model is private"
        )
    except errors.RevisionNotFoundError:
        message = f"the hub's {repo!r} has no revision {revision!r}: give a branch, a tag or a commit hash of it"
    except errors.HFValidationError as error:
        message = f"{repo!r} is neither a directory here nor a hub id: {one_line(error)}"
    except (OSError, HTTPError) as error:
        cause = error.__cause__ or error
        name = f"{repo!r} ({revision})" if revision else repr(repo)
        message = (
            f"{name} is not in the cache {constants.HF_HUB_CACHE}, and the hub does not give it "
            f"({type(cause).__name__}: {one_line(cause)}): run once with a connection, or name a directory"
        )
    raise InputError(message)
