"""Lists and removes teacher caches; nothing here loads torch, so that the dashboard can list them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.errors import CacheError
from workbench.remote import is_remote
from workbench.store.run import runs_root
from workbench.teacher_cache.shards import is_locked, locked, read_manifest


def caches_root() -> Path:
    """Returns the folder of all caches: ``caches`` in the folder of runs.

    Raises:
        CacheError: the runs are not on a local disk; shards can only be mapped from one.
    """
    if is_remote(runs_root()):
        raise CacheError(f"{runs_root()} is not a local folder, but a teacher cache needs one. Choose one with WORKBENCH_RUNS.")
    return runs_root() / "caches"


def list_caches() -> list[dict[str, Any]]:
    """Returns one row per cache: its teacher and settings, how much of it exists, and how long building it took."""
    return [_row(folder) for folder in _folders()]


def prune_caches(names: Sequence[str]) -> list[str]:
    """Removes caches.

    Args:
        names: names of caches. If empty, the unreadable ones are removed: those with a damaged manifest or another format version. A
            build that was stopped can be continued and is kept.

    Returns:
        Names of the removed caches.

    Raises:
        CacheError: a cache does not exist, or is being written; then nothing is removed.
    """
    there = {folder.name: folder for folder in _folders()}
    if unknown := [name for name in names if name not in there]:
        raise CacheError(f"there is no teacher cache '{unknown[0]}' in {caches_root()}. Caches there: {', '.join(there) or 'none'}.")
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
        # one damaged cache must not hide the others
        return {"cache": folder.name, "state": f"unreadable: {error}", "images": None, "variants": None, "precision": None, "keeps": None,
                "GB": size, "build seconds": None, "teacher": None}  # fmt: skip
    key, contents = manifest.key, manifest.key["contents"]
    files = len(manifest.shards) + 1
    state = "complete" if not manifest.missing else f"{100 * (files - len(manifest.missing)) // files} %"
    logits = "logits" if contents["top_k"] is None else f"best {contents['top_k']} classes"
    said = [logits, "boxes"]
    if "kind" in manifest.form:  # of a teacher without queries only the predictions that the key names are kept
        flags = {"logits": f"dense {logits}", "boxes": "dense boxes", "distribution": "dense box distributions"}
        said = [text for name, text in flags.items() if contents.get(f"dense_{name}")] + ["proposals"] * contents.get("rois", False)
    parts = [*(f"{kind} {strides}" for kind, strides in contents["maps"].items()), *(["attentions"] if contents["attentions"] else [])]
    return {
        "cache": folder.name,
        "state": f"{state}, being built" if is_locked(folder) else state,
        "images": manifest.rows // key["variants"],
        "variants": key["variants"],
        "precision": contents["precision"],
        "keeps": ", ".join([*said, *parts]),
        "GB": size,
        "build seconds": manifest.seconds["wall"],
        "teacher": str(key["teacher"])[:12],
    }
