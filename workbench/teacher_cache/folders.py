"""The caches that are there, and removing them; nothing here loads torch, so that the dashboard can list them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.errors import CacheError
from workbench.remote import is_remote
from workbench.store.run import runs_root
from workbench.teacher_cache.shards import is_locked, locked, read_manifest


def caches_root() -> Path:
    """Where caches lie: ``caches`` in the folder of runs.

    Raises:
        CacheError: runs do not lie on a local disk, which shards are mapped from.
    """
    if is_remote(runs_root()):
        raise CacheError(f"{runs_root()} is no local folder, which a teacher cache needs. Choose one with WORKBENCH_RUNS.")
    return runs_root() / "caches"


def list_caches() -> list[dict[str, Any]]:
    """One row a cache: what it is of, how much of it is there, and what building it took."""
    return [_row(folder) for folder in _folders()]


def prune_caches(names: Sequence[str]) -> list[str]:
    """Removes caches.

    Args:
        names: of caches; none: those that cannot be read, for a damaged manifest or another version of the format. A build that was
            stopped can be gone on with and stays.

    Returns:
        Names of what was removed.

    Raises:
        CacheError: no cache of that name, or it is being written; nothing is removed then.
    """
    there = {folder.name: folder for folder in _folders()}
    if unknown := [name for name in names if name not in there]:
        raise CacheError(f"no teacher cache '{unknown[0]}' in {caches_root()}. Caches there: {', '.join(there) or 'none'}.")
    chosen = [there[name] for name in names] if names else [folder for folder in there.values() if not _readable(folder)]
    if busy := [folder.name for folder in chosen if is_locked(folder)]:
        raise CacheError(f"teacher cache '{busy[0]}' is being written by another process. Wait for it or stop it.")
    for folder in chosen:
        with locked(folder):
            shutil.rmtree(folder)
    return [folder.name for folder in chosen]


def _folders() -> list[Path]:
    root = caches_root()
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _readable(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CacheError:
        return False
    return True


def _row(folder: Path) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    try:
        manifest = read_manifest(folder)
    except CacheError as error:
        # one damaged cache hides no other
        return {"cache": folder.name, "state": f"unreadable: {error}", "images": None, "variants": None, "precision": None, "keeps": None,
                "GB": size, "build seconds": None, "teacher": None}  # fmt: skip
    key, contents = manifest.key, manifest.key["contents"]
    files = len(manifest.shards) + 1
    state = "complete" if not manifest.missing else f"{100 * (files - len(manifest.missing)) // files} %"
    parts = [*(f"{kind} {strides}" for kind, strides in contents["maps"].items()), *(["attentions"] if contents["attentions"] else [])]
    return {
        "cache": folder.name,
        "state": f"{state}, being built" if is_locked(folder) else state,
        "images": manifest.rows // key["variants"],
        "variants": key["variants"],
        "precision": contents["precision"],
        "keeps": ", ".join(["logits" if contents["top_k"] is None else f"best {contents['top_k']} classes", "boxes", *parts]),
        "GB": size,
        "build seconds": manifest.seconds["wall"],
        "teacher": str(key["teacher"])[:12],
    }
