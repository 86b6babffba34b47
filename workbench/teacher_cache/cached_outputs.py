"""Converts the teacher's output to rows of tensors, and rows back to the ``DetectorOutput`` that methods take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.detectors.detector import Detector
from workbench.detectors.output import Attentions, DetectorOutput, Level, Queries, QueryOutput
from workbench.methods.context import TeacherAnswer
from workbench.teacher_cache.class_logits import Convert, pack_logits, unpack_logits
from workbench.teacher_cache.dense_outputs import dense_names, pack_dense, read_dense
from workbench.teacher_cache.fields import CacheFields

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_QUERIES = "queries/"
PREPARED = "prepared/"


def learned_queries(detector: Detector) -> bool:
    """True if every image gets the same queries, so that they are stored once; references in pixels depend on the image's size."""
    return "learned_queries" in detector.provides and detector.reference_form == "boxes"


def pack(output: DetectorOutput, contents: CacheFields, device: str = "cpu") -> dict[str, Tensor]:
    """Returns the part of an output that ``contents`` keeps: ``[B, ...]`` by name, contiguous and on the CPU.

    Maps are stored with channels last, as the encoder makes them. The student's maps have the same layout, and comparing equal layouts
    is several times faster.

    Args:
        output: output of the teacher.
        contents: the fields to keep.
        device: ``meta`` gives tensors that have sizes and no values.
    """

    def convert(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return value.to(device, dtype or _DTYPES[contents.precision]).contiguous()

    packed = _pack_queries(output, contents, convert) if isinstance(output, QueryOutput) else pack_dense(output, contents, convert)
    for name, strides in contents.maps.items():
        for level in getattr(output, name):
            if level.stride in strides:
                packed[f"{name}/{level.stride}"] = convert(level.features.permute(0, 2, 3, 1))
                packed[f"{name}/{level.stride}/padding"] = convert(level.padding, torch.bool)
    return packed


def _pack_queries(output: QueryOutput, contents: CacheFields, convert: Convert) -> dict[str, Tensor]:
    def rows(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Returns ``[L, B, ...]`` as ``[B, L, ...]``."""
        return convert(value.transpose(0, 1), dtype)

    packed = {"boxes": rows(output.boxes, torch.float32)} | pack_logits(output.logits, contents.top_k, rows)
    if contents.states:
        packed["states"] = rows(output.states[list(contents.states)])
    if contents.queries:
        for key in ("content", "position", "reference", "source"):
            value = getattr(output.queries, key)
            if value is not None:
                packed[_QUERIES + key] = convert(value, torch.int32 if key == "source" else torch.float32)
    if contents.attentions and output.attentions is not None:
        packed["attentions/self"] = rows(output.attentions.self_attention)
        packed["attentions/cross"] = rows(output.attentions.cross_attention)
    if contents.box_distribution and output.box_distribution is not None:
        packed["box_distribution"] = rows(output.box_distribution)
    return packed


def split_constants(packed: Mapping[str, Tensor], constant: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the rows, and apart from them the queries as one row for all images if they are ``constant``."""
    once = {name: value[:1].clone() for name, value in packed.items() if constant and name.startswith(_QUERIES)}
    return {name: value for name, value in packed.items() if name not in once}, once


def names_of(contents: CacheFields, there: Sequence[str]) -> list[str]:
    """Lists the existing tensors that belong to ``contents``."""
    wanted = {"boxes", "logits", "classes", "match", *(["states"] if contents.states else []), *dense_names(contents)}
    for kind, strides in contents.maps.items():
        wanted |= {f"{kind}/{stride}{ending}" for stride in strides for ending in ("", "/padding")}
    wanted |= {name for name in there if contents.queries and name.startswith(_QUERIES)}
    wanted |= {"attentions/self", "attentions/cross"} if contents.attentions else set()
    wanted |= {"box_distribution"} if contents.box_distribution else set()
    prepared = tuple(f"{PREPARED}{one}/" for one in contents.prepared)
    return [name for name in there if name in wanted or name.startswith(prepared)]


@dataclass(frozen=True)
class CachedTeacherOutputs:
    """The teacher's outputs for B images, as they are stored on disk.

    Attributes:
        rows: ``[B, ...]`` tensors by name.
        constants: ``[1, ...]`` tensors that are the same for all images.
        match: ``[B, L, N]`` int16, the own matching to the targets of a teacher with queries; None of another teacher.
        states: Decoder layer of each of the kept states.
        form: See ``Manifest``.
    """

    rows: dict[str, Tensor]
    constants: dict[str, Tensor]
    match: Tensor | None
    states: tuple[int, ...]
    form: dict[str, Any]

    def __getitem__(self, part: slice) -> "CachedTeacherOutputs":
        """Returns the outputs for some of the images."""
        match = None if self.match is None else self.match[part]
        return replace(self, rows={name: value[part] for name, value in self.rows.items()}, match=match)

    def to(self, device: torch.device | str) -> "CachedTeacherOutputs":
        """Returns the same outputs on ``device``; the matching stays on the CPU, where all matchings are."""
        rows, constants = ({name: value.to(device) for name, value in part.items()} for part in (self.rows, self.constants))
        return replace(self, rows=rows, constants=constants)

    def answer(self) -> TeacherAnswer:
        """Returns all that a training step needs: the output, the teacher's own matching, and what methods prepared."""
        return TeacherAnswer(output=self.output(), match=self.teacher_match, prepared=self.prepared)

    @property
    def teacher_match(self) -> Tensor | None:
        """The own matching to the targets of a teacher with queries, ``[L, B, N]`` int64."""
        return None if self.match is None else self.match.transpose(0, 1).long()

    @property
    def prepared(self) -> dict[str, dict[str, Tensor]]:
        """Tensors that methods prepared from the output, by ``Method.prepared_by``."""
        found: dict[str, dict[str, Tensor]] = {}
        for path, value in self.rows.items():
            if path.startswith(PREPARED):
                _, _, settings, name = path.split("/", 3)
                found.setdefault(settings, {})[name] = value
        return found

    def output(self) -> DetectorOutput:
        """Returns the output in float32, as methods take it; fields that are not kept are empty, states of missing layers are NaN."""
        levels: dict[str, Any] = {kind: self._levels(kind) for kind in ("memory", "neck", "backbone")}
        if "kind" in self.form:
            return read_dense({**self.constants, **self.rows}, self.form, levels)
        boxes = self._layers("boxes")
        layers, batch, queries = boxes.shape[:3]
        return QueryOutput(
            logits=unpack_logits(self.rows, self.form["columns"]).transpose(0, 1).contiguous(),
            boxes=boxes,
            states=self._states(layers, boxes),
            queries=self._queries(batch, queries, boxes),
            context=None,
            activation=self.form["activation"],
            attentions=Attentions(self._layers("attentions/self"), self._layers("attentions/cross"))
            if "attentions/self" in self.rows
            else None,
            box_distribution=self._layers("box_distribution") if "box_distribution" in self.rows else None,
            **levels,
        )

    def _layers(self, name: str) -> Tensor:
        """Returns ``[B, L, ...]`` as ``[L, B, ...]`` float32."""
        return self.rows[name].transpose(0, 1).float().contiguous()

    def _states(self, layers: int, like: Tensor) -> Tensor:
        if "states" not in self.rows:
            return like.new_empty(*like.shape[:3], 0)
        kept = self._layers("states")
        if self.states == tuple(range(layers)):
            return kept
        states = kept.new_full((layers, *kept.shape[1:]), torch.nan)
        states[list(self.states)] = kept
        return states

    def _queries(self, batch: int, count: int, like: Tensor) -> Queries:
        kept = {**self.constants, **self.rows}

        def of(key: str) -> Tensor | None:
            value = kept.get(_QUERIES + key)
            return None if value is None else value.expand(batch, *value.shape[1:])

        content, source = of("content"), of("source")
        if content is None or source is None:
            return Queries(like.new_empty(batch, count, 0), None, None, torch.full((batch, count), -1, device=like.device))
        return Queries(content, of("position"), of("reference"), source.long())

    def _levels(self, kind: str) -> tuple[Level, ...]:
        strides = sorted(int(name.split("/")[1]) for name in self.rows if name.startswith(f"{kind}/") and name.count("/") == 1)
        return tuple(
            Level(self.rows[f"{kind}/{stride}"].permute(0, 3, 1, 2).float(), stride, self.rows[f"{kind}/{stride}/padding"])
            for stride in strides
        )
