"""Compare what lies in two places.

Which data or which model a run learns from counts, and where they lie does not: `/mnt/a/alpaca/train.jsonl` is
`/scratch/b/alpaca/train.jsonl`, and not `/mnt/a/dolly/train.jsonl`. The last part of a path counts. If it is a name
that any data may have, such as `train.jsonl` or `checkpoint-500`, so does the nearest folder that says more. What
lies at the top of a path is a mount, and so is what lies in `/mnt`, `/home` and the like.
"""

from __future__ import annotations

from crashproof.patterns import LazyPattern

__all__ = ["is_same_thing"]

_STORE = LazyPattern(r"(?:s3a?|gc?s|az|abfss?|adl|wasbs?|oss|r2|hdfs|dbfs|file|hf|nfs)://[^/]*/?")
"""Not `https://`: another server may answer something else."""
_RELATIVE_PLACE = LazyPattern(r"[A-Za-z]:/|~[^/]*/|\.{1,2}/|\$\w+/|\$?\{[^}]*\}/|%\w+%/")
_PARENT_OF_MOUNTS = LazyPattern(
    r"(?i:cephfs|efs|gpfs|home|lustre|media|mnt|mounts?|nfs|nobackup|private|projects|scratch|users|volumes|work)"
)
_SAYS_LITTLE = LazyPattern(
    r"(?i:train|training|trainset|valid|validation|val|test|dev|eval|data|datasets?|all|full|raw|processed|tokenized|"
    r"arrow|parquet|jsonl?|text|txt|csv|corpus|inputs?|files|images|labels|shards?|part|samples|models?|pytorch_model|"
    r"adapter_model|adapter|weights|checkpoints?|ckpts?|final|best|last|latest|main|default|outputs?|runs?|step|epoch|"
    r"iter|global_step|mnt|mount|disk|ssd|nvme|drive|vol|volume|nfs|scratch|host|node|machine|old|new|te?mp|[a-z])"
    r"(?:[-_=]?[0-9]+(?:[-_]of[-_][0-9]+)?)*(?:\.[A-Za-z0-9]{1,8})*"
)
_HUB_CACHE = LazyPattern(r"(?:^|/)(?:models|datasets)--(?P<name>[^/]+?)(?:/(?:snapshots|blobs)/[^/]+)?/?$")
_FILE = LazyPattern(
    r"\.(?:arrow|bin|ckpt|csv|gz|h5|hdf5|idx|jsonl?|lmdb|model|np[yz]|parquet|pth?|safetensors|tar|tsv|txt|ya?ml|zst)$"
)


def is_same_thing(before: str, after: str) -> bool:
    """Whether two texts are paths of what has the same name."""
    one, other = _split(before), _split(after)
    is_place = one[0] or other[0] or (_FILE.search(before) and _FILE.search(after))
    names, others = one[1], other[1]
    if not is_place or not names or not others:
        return one == other
    if names[-1] != others[-1]:
        return False
    if not _SAYS_LITTLE.fullmatch(names[-1]):
        return True
    folder, other_folder = _nearest_telling(names[:-1]), _nearest_telling(others[:-1])
    return folder == other_folder or folder is None or other_folder is None


def _split(text: str) -> tuple[bool, list[str]]:
    """Whether a text is certainly a path, and its parts without the mount."""
    path = text.replace("\\", "/")
    if cached := _HUB_CACHE.search(path):
        # As it is called on the hub: with its owner, and without the commit.
        return False, cached["name"].split("--")
    if prefix := _STORE.match(path) or _RELATIVE_PLACE.match(path):
        return True, _parts(path[prefix.end() :])
    parts = _parts(path)
    if not path.startswith("/"):
        return False, parts
    num_above = 2 if parts and _PARENT_OF_MOUNTS.fullmatch(parts[0]) else 1
    return True, parts[num_above:] or parts[-1:]


def _parts(path: str) -> list[str]:
    return [each for each in path.split("/") if each not in ("", ".", "..")]


def _nearest_telling(folders: list[str]) -> str | None:
    return next((each for each in reversed(folders) if not _SAYS_LITTLE.fullmatch(each)), None)
