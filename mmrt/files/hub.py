"""Models from huggingface.co, by the package huggingface-hub, whose cache and settings hold.

    with mmrt.Model(mmrt.hub.path("HuggingFaceTB/SmolLM2-360M-Instruct-GGUF", "Q8_0")) as model:

The extra `hub` brings the package.
"""

import re
from collections.abc import Iterable
from fnmatch import filter as matching
from pathlib import Path
from typing import TYPE_CHECKING

from mmrt.core.arguments import text
from mmrt.errors import ArgumentError, FileError, UnsupportedError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["path"]

# What is taken where nobody says which: the first that there is.
PREFERRED = ("Q4_K_M", "Q8_0", "")

_PATIENCE = 5  # seconds that the hub has to answer

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def path(repository: str, quant: str | None = None, file: str | None = None) -> Path:
    """Where a GGUF file of `repository` ("owner/name") lies; fetches it if it is not in the cache.

    quant: a word of its name such as "Q4_K_M", which is also the default if there is one. file: its
    name. Of a model in several files, the first one's path. What is in the cache is found offline.

    Raises UnsupportedError without the package, FileError where huggingface-hub cannot fetch it,
    ArgumentError where there is no such file.
    """
    text("repository", repository)
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UnsupportedError(
            f"{repository}: fetching it takes huggingface-hub: pip install huggingface-hub"
        ) from None
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ArgumentError(f"{repository!r:.200} is no repository: expected OWNER/NAME")
    try:
        names, offline = _names(hub, repository)
    except Exception as error:  # of whichever kind the package, and those under it, raise
        raise _refused(repository, error) from error
    files = _files(names, repository, quant, file)
    try:
        found = [hub.hf_hub_download(repository, n, local_files_only=offline) for n in files]
    except Exception as error:
        raise _refused(repository, error) from error
    return Path(found[0])


def _refused(repository: str, error: Exception) -> FileError:
    said = " ".join(str(error).split())
    return FileError(f"{repository}: huggingface-hub cannot fetch it; it says: {said:.300}")


def _names(hub: "ModuleType", repository: str) -> tuple[list[str], bool]:
    """The files of a repository, False; those in the cache, True, where the hub cannot be reached.

    Asked once: hub.list_repo_files() would ask for half a minute, and print each failure.
    """
    try:
        about = hub.model_info(repository, timeout=_PATIENCE)
    except Exception:
        if not (cached := _cached(hub, repository)):
            raise
        return cached, True
    return [sibling.rfilename for sibling in about.siblings or ()], False


def _cached(hub: "ModuleType", repository: str) -> list[str]:
    """The files of a repository's newest revision in the cache."""
    try:
        cached = [repo for repo in hub.scan_cache_dir().repos if repo.repo_id == repository]
    except Exception:  # there is no cache
        return []
    revisions = [revision for repo in cached for revision in repo.revisions]
    if not revisions:
        return []
    newest = max(revisions, key=lambda revision: revision.last_modified)
    return [file.file_path.relative_to(newest.snapshot_path).as_posix() for file in newest.files]


def _files(names: Iterable[str], repository: str, quant: str | None, file: str | None) -> list[str]:
    """The names of the files that a model is in, in order."""
    models = sorted(n for n in matching(names, "*.gguf") if "mmproj" not in n.lower())
    if file is not None:
        chosen = [name for name in models if name == file]
    elif quant is not None:
        chosen = _with_word(models, quant)
    else:
        chosen = next((some for word in PREFERRED if (some := _with_word(models, word))), [])
    if not chosen:
        wanted = file or quant or "GGUF file"
        there = ", ".join(models[:20]) or "no GGUF files"
        raise ArgumentError(f"{repository}: there is no {wanted}; there are {there}")
    stem = _PART.sub("", chosen[0])
    parts = [name for name in models if _PART.search(name) and _PART.sub("", name) == stem]
    return parts or chosen[:1]


def _with_word(names: list[str], word: str) -> list[str]:
    """Those with `word` in their names; "Q4_K" is not in "Q4_K_M"."""
    pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9_])", re.IGNORECASE)
    return [name for name in names if not word or pattern.search(name)]
