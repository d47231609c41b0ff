"""Hugging Face hub: resolves a repository's revision to a commit, and downloads its snapshot."""

from dataclasses import dataclass
from pathlib import Path

from dpo_core.errors import DataError, DPOError, RecipeError

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class HubRepository:
    """A repository of the hub. ``kind``: model or dataset; ``alternative``: the settings that need no hub."""

    kind: str
    name: str
    revision: str | None
    alternative: str


def resolve_commit(repository: HubRepository) -> str:
    """The commit of a repository's revision, from the hub or else from the local cache.

    Raises DataError (RecipeError for a model) when neither has it.
    """
    return commit_on_hub(repository) or commit_in_cache(repository)


def snapshot(repository: HubRepository, files: tuple[str, ...]) -> Path:
    """The directory of a dataset at a commit, laid out as on the hub: downloaded, or from the local cache.

    ``files``: patterns of the files to download; empty means all. Raises DataError when neither hub nor cache has it.
    """
    from huggingface_hub import snapshot_download  # lazy: the client takes half a second to import

    offline = commit_on_hub(repository) is None
    try:
        return Path(
            snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=repository.revision,
                allow_patterns=list(files) or None,
                local_files_only=offline,
            )
        )
    except OSError as error:
        raise unavailable_error(
            repository, f"The download of {repository.name} broke off: {str(error).splitlines()[0]}."
        ) from error


def commit_on_hub(repository: HubRepository) -> str | None:
    """The commit of a repository's revision on the hub; None when the hub does not answer.

    Raises DataError (RecipeError for a model) when the hub has no such repository or refuses access.
    """
    # Lazy: the client costs half a second that local input need not pay.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    name = repository.name
    try:
        info = HfApi().repo_info(name, repo_type=repository.kind, revision=repository.revision, timeout=TIMEOUT_S)
        return str(info.sha)
    except (GatedRepoError, RepositoryNotFoundError):
        raise unavailable_error(
            repository,
            f"The hub has no {repository.kind} {name} for you: it is misspelled, private or gated."
            f"The hub has no {repository.kind} {name} that you can read: it is misspelled, private or gated.",
        ) from None
    except HfHubHTTPError as error:
        raise unavailable_error(repository, f"The hub refused {name}: {str(error).splitlines()[0]}.") from None
    except Exception:  # noqa: BLE001 - no network: the transport's own kind of error differs between releases
        return None


def commit_in_cache(repository: HubRepository) -> str:
    """The commit of this revision in the local cache.

    Raises DataError (RecipeError for a model) when the cache does not have it.
    """
    from huggingface_hub import constants  # lazy: as above

    home = Path(constants.HF_HUB_CACHE)
    root = home / f"{repository.kind}s--{repository.name.replace('/', '--')}"
    reference = root / "refs" / (repository.revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    if repository.revision and (root / "snapshots" / repository.revision).is_dir():
        return repository.revision
    raise unavailable_error(
        repository, f"The hub cannot be reached, and {repository.kind} {repository.name} is not in the cache {home}."
    )


def unavailable_error(repository: HubRepository, found: str) -> DPOError:
    """The error for a hub repository that is not available."""
    rule = f"A hub {repository.kind} is downloaded once, and then read from the cache."
    remedy = (
        f"Use {repository.alternative}, point HF_HOME at a cache that has it, or set HF_TOKEN and check the network."
    )
    return (RecipeError if repository.kind == "model" else DataError)(found, rule, remedy)
