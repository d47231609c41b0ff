"""The hub, asked once and briefly: which commit does a name mean now?"""

from dataclasses import dataclass
from pathlib import Path

from dpo_core.errors import DataError, DPOError, RecipeError

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class HubRepository:
    """A repository of the hub. kind: model or dataset; ``instead`` is the setting that does without the hub."""

    kind: str
    name: str
    revision: str | None
    instead: str


def check_reachable(wanted: HubRepository) -> str:
    """The commit of a repository's revision, from the hub or else from the local cache.

    Raises DataError (RecipeError for a model) in one line when neither knows it.
    """
    return ask(wanted) or cached(wanted)


def snapshot(wanted: HubRepository, files: tuple[str, ...]) -> Path:
    """The directory of a dataset at a commit, laid out as on the hub: downloaded, or what the local cache holds of it.

    files: patterns of those that are needed; none means all. Raises DataError when neither hub nor cache has it.
    """
    from huggingface_hub import snapshot_download  # lazy: as above

    offline = ask(wanted) is None
    try:
        return Path(
            snapshot_download(
                wanted.name,
                repo_type=wanted.kind,
                revision=wanted.revision,
                allow_patterns=list(files) or None,
                local_files_only=offline,
            )
        )
    except OSError as error:
        raise refusal(wanted, f"The download of {wanted.name} broke off: {str(error).splitlines()[0]}.") from error


def ask(wanted: HubRepository) -> str | None:
    """The commit of a repository's revision as the hub tells it; None when the hub does not answer.

    Raises DataError (RecipeError for a model) when it answers that there is none.
    """
    # Lazy: the client costs half a second that local input need not pay.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    name = wanted.name
    try:
        info = HfApi().repo_info(name, repo_type=wanted.kind, revision=wanted.revision, timeout=TIMEOUT_S)
        return str(info.sha)
    except (GatedRepoError, RepositoryNotFoundError):
        raise refusal(wanted, f"The hub shows no {wanted.kind} {name}: misspelt, private or gated.") from None
    except HfHubHTTPError as error:
        raise refusal(wanted, f"The hub refused {name}: {str(error).splitlines()[0]}.") from None
    except Exception:  # noqa: BLE001 - no network: the transport's own kind of error differs between releases
        return None


def cached(wanted: HubRepository) -> str:
    """The commit that the local cache holds for this revision."""
    from huggingface_hub import constants  # lazy: as above

    home = Path(constants.HF_HUB_CACHE)
    root = home / f"{wanted.kind}s--{wanted.name.replace('/', '--')}"
    reference = root / "refs" / (wanted.revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    if wanted.revision and (root / "snapshots" / wanted.revision).is_dir():
        return wanted.revision
    raise refusal(wanted, f"The hub cannot be reached, and {wanted.kind} {wanted.name} is not in the cache {home}.")


def refusal(wanted: HubRepository, found: str) -> DPOError:
    """The error for a hub repository that cannot be had."""
    rule = f"A hub {wanted.kind} needs the network once."
    remedy = f"Use {wanted.instead}, point HF_HOME at a cache that holds it, or set HF_TOKEN and check the network."
    return (RecipeError if wanted.kind == "model" else DataError)(found, rule, remedy)
