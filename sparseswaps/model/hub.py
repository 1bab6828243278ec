"""Models of the Hugging Face hub: a revision resolved to a commit, and its files brought into the usual cache.

What is in the cache is taken from there without a look at the network. `huggingface_hub` is imported inside the
functions, since most studies need none of them and every start of the workflow would pay for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparseswaps.base.errors import InputError, one_line
from sparseswaps.model.directory import INDEX, entry_file, indexed_files, is_companion, weight_files


def resolve(repo: str, revision: str | None) -> str:
    """The commit hash of a branch, a tag or a commit (None: of `main`), with its config.json in the cache.

    Raises:
        InputError: the hub has no such model or revision or does not show it; nothing is cached and the hub cannot be
            reached; or the model has no config.json or no safetensors files.
    """
    from huggingface_hub import resolve_revision, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import RevisionResolutionError
    from huggingface_hub.utils import disable_progress_bars

    with _named(repo, revision):
        try:
            commit = resolve_revision(repo, revision=revision, local_files_only=True).resolved
        except RevisionResolutionError:
            commit = None
        if commit is None or not isinstance(try_to_load_from_cache(repo, "config.json", revision=commit), str):
            disable_progress_bars()  # one small file, while the workflow starts
            commit = Path(snapshot_download(repo, revision=revision, allow_patterns=["config.json"])).name
    names = _names(repo, commit)
    if names is not None:
        if "config.json" not in names:
            raise InputError(f"{repo!r} is no model of transformers: it has no config.json")
        entry_file(repo, names)
    return commit


def download(repo: str, commit: str) -> Path:
    """The directory in the cache with a commit's weights in safetensors and the small files that belong to them.

    Raises:
        InputError: as for `resolve`, or a weight file is missing.
    """
    from huggingface_hub import snapshot_download

    with _named(repo, commit):
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=["config.json"]))
        names = _names(repo, commit)
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
        # Another program filled the cache, and there is no network to ask what is missing.
        raise InputError(f"the cache has only a part of {repo!r} ({commit}): run once with a connection") from None
    return folder


def _names(repo: str, commit: str) -> list[str] | None:
    """The paths of all files of a commit; None when the cache holds no list of them."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(repo, revision=commit)]
    except CachedRepoTreeNotFoundError:
        return None


@contextmanager
def _named(repo: str, revision: str | None) -> Iterator[None]:
    """Turn whatever huggingface_hub raises for a model into one line that says what to do."""
    from httpx2 import HTTPError
    from huggingface_hub import constants, errors

    what = f"{repo!r} ({revision})" if revision else repr(repo)
    login = "log in with `hf auth login`"
    try:
        yield
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{repo}"
        raise InputError(f"{repo!r} is gated: ask for access at {page}, then {login}") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{repo!r} is neither a directory here nor a model that the hub shows you: check the spelling, or {login} "
            "if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        message = f"the hub's {repo!r} has no revision {revision!r}: give a branch, a tag or a commit hash of it"
        raise InputError(message) from None
    except errors.HFValidationError as error:
        raise InputError(f"{repo!r} is neither a directory here nor a hub id: {one_line(error)}") from None
    except (OSError, HTTPError) as error:
        cause = error.__cause__ or error
        why = f"{type(cause).__name__}: {one_line(cause)}"
        raise InputError(
            f"{what} is not in the cache {constants.HF_HUB_CACHE}, and the hub does not give it ({why}): run once with "
            "a connection, or name a directory"
        ) from None
