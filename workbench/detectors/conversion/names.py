"""Renames and splits the tensors of a state dict by rules."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from workbench.errors import CheckpointError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def rename(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Renames every tensor by the first rule that matches its name.

    A name that no rule matches stays unchanged, so that loading reports it. BatchNorm's batch counters, which inference does not use,
    are left out.

    Args:
        state: tensors by name.
        rules: pairs of a regular expression for the whole name and its replacement, as in ``re.sub``.

    Raises:
        CheckpointError: two tensors get the same name.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    result: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        match, replacement = next(((m, new) for pattern, new in compiled if (m := pattern.fullmatch(name))), (None, ""))
        new = name if match is None else replacement(match) if callable(replacement) else match.expand(replacement)
        if new in result:
            raise CheckpointError(
                f"the checkpoint holds '{origin[new]}' and '{name}', which are one tensor '{new}' here. Keep one model in the file."
            )
        result[new], origin[new] = value, name
    return result


def split_attention(state: Mapping[str, Tensor], below: str, parts: Iterable[str]) -> dict[str, Tensor]:
    """Splits every ``in_proj_weight`` and ``in_proj_bias`` of torch's attention into three tensors of equal height.

    Args:
        state: tensors by name.
        below: prefix of the names that are split; other tensors stay unchanged.
        parts: names of query, key and value, which replace ``in_proj``, such as ``q_proj`` in ``q_proj.weight``.
    """
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        start, found, kind = name.rpartition("in_proj_")
        if not found or not name.startswith(below):
            result[name] = value
            continue
        for part, tensor in zip(parts, value.chunk(3), strict=True):
            result[f"{start}{part}.{kind}"] = tensor
    return result
