"""Models by their hub id: fetches what `ORG/NAME` needs to be served into the hub's cache, and gives the folder.

Only configuration, tokenizer, chat template and safetensors files are fetched, never a pickle or a Python file. The library
`huggingface_hub` downloads, resumes and shows the progress; where its hub, cache and token are, and whether it may go
online, its own variables say (HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE). Calls block, so they belong in a thread.
Knows no settings and no torch.
"""

import errno
import json
import logging
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from actorllm.errors import (
    CheckpointError,
    DiskFull,
    DownloadInterrupted,
    HubAccessDenied,
    HubCacheUnusable,
    HubModelNotFound,
    HubUnreachable,
    ModelError,
    SettingsError,
)

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    INDEX_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "*.tiktoken",
    "chat_template.json",
    "chat_template.jinja",
)
"""All that is fetched beside weights."""

PICKLES = (".bin", ".pt", ".pth")
ATTEMPTS = 3
"""The library resumes a file whose connection was closed; for what it gives up on, the download is begun again so many times
in all. Files that are whole stay."""


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form ORG/NAME; paths with more or fewer parts, or that begin with a dot, have not."""
    return re.fullmatch(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", text, re.ASCII) is not None


def check_place(path: str | None, *, revision: str | None) -> None:
    """Raise `SettingsError` for what can be neither a folder nor a model of the hub, and for a revision of what is no such model."""
    is_folder = path is None or Path(path).is_dir()
    if is_folder and revision is not None:
        which = "no model was named: give ORG/NAME" if path is None else f"{path} is not one"
        raise SettingsError(f"--revision {revision}: only a model of the hub has revisions, and {which}")
    if path is not None and not is_folder and not is_hub_id(path):
        raise SettingsError(f"{path} is neither a folder nor a hub id: give a Hugging Face model folder, or ORG/NAME")


def download(hub_id: str, *, revision: str | None = None) -> Path:
    """The folder with `hub_id` at `revision` (a branch, tag or commit; the main branch), after fetching what the cache lacks.

    Without network, or with HF_HUB_OFFLINE, a wholly cached model is found all the same. Raises `HubUnreachable`,
    `HubModelNotFound`, `HubAccessDenied`, `DownloadInterrupted`, `HubCacheUnusable`, `DiskFull`, or `CheckpointError` where
    there are only pickles.
    """
    logger.info("there is no folder %s: looking for a model of that name on the hub", hub_id)
    folder = fetch(hub_id, TEXT_FILES, revision=revision)
    commit = folder.name
    sizes = _file_sizes(hub_id, commit)
    weights = _weight_files(folder)
    if sizes is not None:
        weights = [name for name in weights if name in sizes]
        _check_pickles(hub_id, weights, sizes)
    missing = [name for name in weights if not (folder / name).exists()]
    if missing:
        if sizes is not None:
            _check_disk(hub_id, folder, sum(sizes[name] for name in missing))
        fetch(hub_id, missing, revision=commit)
    logger.info("%s is commit %s of the hub", hub_id, commit)
    return folder


def fetch(hub_id: str, files: Sequence[str], *, revision: str | None = None) -> Path:
    """Fetch files of a model's top folder (names or glob patterns) and return the cached folder, whose name is the commit.

    Raises as `download` does.
    """
    from huggingface_hub import snapshot_download  # takes half a second, and a model in a folder needs none of it

    attempt, is_answering = 1, _is_answering()
    while True:
        try:
            with ExitStack() as bars:
                folder = snapshot_download(
                    hub_id,
                    revision=revision,
                    allow_patterns=list(files),
                    ignore_patterns=["*/*"],
                    local_files_only=not is_answering,
                    tqdm_class=_progress_bar(hub_id, bars),
                    library_name="actorllm",
                )
            return Path(folder)
        except Exception as error:  # boundary: the library lets its HTTP client's and the disk's errors through as they are
            failure = _typed(error, hub_id, revision=revision)
            if not isinstance(failure, DownloadInterrupted) or attempt == ATTEMPTS:
                raise failure from error
            logger.warning("%s (attempt %d of %d)", failure.message, attempt, ATTEMPTS)
            attempt += 1


def fetch_shapes(hub_id: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the headers of the safetensors files alone; {} where there are none.

    Raises `CheckpointError` for a header that makes no sense, and as `download` does.
    """
    from huggingface_hub import constants, errors, get_safetensors_metadata

    if not _is_answering():
        raise HubUnreachable(f"{constants.ENDPOINT} cannot be reached for the tensors of {hub_id}: check the network, or give a model's folder")
    try:
        files = get_safetensors_metadata(hub_id).files_metadata.values()
    except errors.NotASafetensorsRepoError:
        return {}
    except (errors.SafetensorsParsingError, ValueError) as error:
        raise CheckpointError(f"{hub_id}: a safetensors file has a header that cannot be read: {error}") from error
    except Exception as error:  # boundary: the library lets its HTTP client's and the disk's errors through as they are
        raise _typed(error, hub_id, revision=None) from error
    return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}


def _is_answering() -> bool:
    """Whether the hub answers at all. Without network the library would ask half a minute long, and longer where packets vanish;
    here half of the time that it gives one request (HF_HUB_ETAG_TIMEOUT, 10 s) has to do."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT / 2, follow_redirects=False)
    except Exception:  # boundary: the library lets its HTTP client's errors through as they are
        return False
    return True


def _progress_bar(hub_id: str, bars: ExitStack) -> type:
    """Of the library's several bars one: the bytes of all files together, on a terminal, gone when `bars` is left."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            disable = None if options.get("name") == "huggingface_hub.snapshot_download" else True  # None: not on a terminal
            options |= {"desc": f"downloading {hub_id}", "disable": disable, "leave": False}
            super().__init__(*args, **options)
            bars.callback(self.close)

        def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
            """The description stays."""

    return Bar


def _file_sizes(hub_id: str, commit: str) -> dict[str, int] | None:
    """Bytes of every file of a commit whose files were fetched; None if the cache does not say."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(hub_id, revision=commit)}
    except CachedRepoTreeNotFoundError:
        return None


def _weight_files(folder: Path) -> list[str]:
    """What the index names, or the single file. An index that cannot be read names nothing: whoever loads it says why."""
    if not (folder / INDEX_FILE).is_file():
        return [WEIGHTS_FILE]
    try:
        names = json.loads((folder / INDEX_FILE).read_bytes())["weight_map"].values()
        return sorted({name for name in names if name.endswith(".safetensors") and "/" not in name})
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _check_pickles(hub_id: str, weights: Sequence[str], sizes: dict[str, int]) -> None:
    pickles = sorted(name for name in sizes if name.endswith(PICKLES) and "/" not in name)
    if pickles and not weights:
        raise CheckpointError(
            f"{hub_id} has no {WEIGHTS_FILE}, only {pickles[0]}: pickles are never downloaded or read; "
            "choose a revision or a copy of the model in safetensors"
        )


def _check_disk(hub_id: str, folder: Path, needed: int) -> None:
    """Raise `DiskFull` before a download of `needed` bytes that cannot end well."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            f"{hub_id} takes {needed / 2**20:.0f} MiB more, and the disk of the hub's cache has {free / 2**20:.0f} MiB left: "
            "free some, or name a folder on another disk by HF_HOME"
        )
    logger.info("downloading %s: %.0f MiB of weights", hub_id, needed / 2**20)


def _typed(error: Exception, hub_id: str, *, revision: str | None) -> ModelError:
    """What the library raised, as an error that says what to change."""
    from huggingface_hub import constants, errors

    where = hub_id if revision is None else f"{hub_id} at revision {revision}"
    absent = f"there is no folder {hub_id}, and as a model of the hub {where} is not wholly in the cache"
    if isinstance(error, errors.GatedRepoError):
        return HubAccessDenied(
            f"{hub_id} is gated: ask for access on the model's page {constants.ENDPOINT}/{hub_id}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubModelNotFound(f"{hub_id} has no revision {revision!r}: give --revision a branch, a tag or a commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubModelNotFound(
            f"there is no folder {hub_id}, and no such model on {constants.ENDPOINT} either, or it is private: check the name, "
            "or log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.is_offline_mode():
            return HubUnreachable(f"{absent}; HF_HUB_OFFLINE is set: unset it to download the model")
        return HubUnreachable(f"{absent}; {constants.ENDPOINT} cannot be reached: check the network, or give a model's folder")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return HubAccessDenied(f"{constants.ENDPOINT} refuses {where} ({status}): check HF_TOKEN or `hf auth login`")
        return HubUnreachable(f"{constants.ENDPOINT} answered {status} for {where}: try again later")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk is full while {hub_id} is downloaded: free some, or name a folder on another disk by HF_HOME")
    if isinstance(error, OSError) and error.filename is not None:
        return HubCacheUnusable(
            f"the hub's cache cannot be used ({error.strerror}: {error.filename}): make it writable, or name another folder by HF_HOME"
        )
    return DownloadInterrupted(
        f"the download of {where} broke off: {type(error).__name__}: {error}; start again, files that are whole are kept"
    )
