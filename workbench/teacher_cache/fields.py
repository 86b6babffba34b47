"""Chooses the fields of the teacher's output that a cache keeps: those that the methods of a recipe read."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from workbench.detectors.detector import Detector
from workbench.errors import IncompatibleError
from workbench.methods.levels import Feature, resolve_feature
from workbench.methods.method import Method

Precision = Literal["fp16", "fp32"]
# maps the need of a method to the choice of feature it stands for
_FEATURES: dict[str, Feature] = {
    "memory|neck|head": "auto", "head": "head", "memory": "memory", "neck": "neck", "backbone": "backbone",
}  # fmt: skip
# fields that only a teacher without queries has; where they are False they stand in no manifest, as before they existed
_DENSE = ("dense_logits", "dense_boxes", "dense_distribution", "rois")
_FIRST_STAGE = frozenset({"dense_logits", "dense_boxes"})


class CacheFields(BaseModel, frozen=True, extra="forbid"):
    """Fields of a ``DetectorOutput`` that are kept for every image.

    Logits and boxes of all layers of a teacher with queries always are. Those of other teachers are as many as the anchors of the image and
    kept only where a method reads them.

    Attributes:
        precision: Precision of logits, states, maps, attentions and distributions. Boxes, references and query vectors are float32,
            because half precision has 11 bits, which move an edge of a small box by a hundredth of its side.
        top_k: Number of best classes kept per query; None keeps all.
        states: Layers whose decoder states are kept.
        maps: Strides of the kept levels, by kind (memory, neck, backbone).
        queries: True if the decoder's inputs are kept.
        attentions: True if both attention maps are kept.
        box_distribution: True if the box distribution is kept, for families that have one.
        prepared: What methods prepare from the output (``Method.prepare``), as ``method/hash of its settings``; stored as float32. A
            cache made with other settings can still be used: every step then prepares it anew.
        dense_logits: True if the class logits of every anchor or point are kept, with the centreness of a family that predicts it.
        dense_boxes: True if its boxes are kept, and the numbers of the head from which they are decoded.
        dense_distribution: True if its box distribution is kept.
        rois: True if the proposals of a two-stage teacher are kept, with their logits and boxes.
    """

    precision: Precision = "fp16"
    top_k: int | None = None
    states: tuple[int, ...] = ()
    maps: dict[str, tuple[int, ...]] = {}
    queries: bool = False
    attentions: bool = False
    box_distribution: bool = False
    prepared: tuple[str, ...] = ()
    dense_logits: bool = False
    dense_boxes: bool = False
    dense_distribution: bool = False
    rois: bool = False

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value or name not in _DENSE}

    @property
    def large(self) -> list[str]:
        """Kept fields that grow with the image's number of cells; the user must accept their size before they are written."""
        flags = {"attentions": "attention maps", "dense_logits": "dense logits", "dense_boxes": "dense boxes",
                 "dense_distribution": "dense box distributions"}  # fmt: skip
        return [*(f"{kind} maps" for kind in sorted(self.maps)), *(text for name, text in flags.items() if getattr(self, name))]

    def lacks(self, wanted: "CacheFields") -> list[str]:
        """Lists the parts of ``wanted`` that are not kept here, in words."""
        missing = [f"states of layer {layer}" for layer in wanted.states if layer not in self.states]
        for kind, strides in wanted.maps.items():
            missing += [f"{kind} at stride {stride}" for stride in strides if stride not in self.maps.get(kind, ())]
        flags = ("queries", "attentions", "box_distribution", *_DENSE)
        missing += [name for name in flags if getattr(wanted, name) and not getattr(self, name)]
        return missing


def fields_of(
    methods: Sequence[Method], student: Detector, teacher: Detector, precision: Precision = "fp16", top_k: int | None = None
) -> CacheFields:
    """Returns the fields that the methods of a recipe read.

    Args:
        methods: methods built for the pair.
        student: the student, whose levels are distilled into.
        teacher: the teacher, whose outputs are kept.
        precision: see ``CacheFields``.
        top_k: see ``CacheFields``.

    Raises:
        IncompatibleError: a method needs the live teacher, or all classes although only the best are kept; the message names it.
    """
    states: set[int] = set()
    maps: dict[str, set[int]] = {}
    kept: dict[str, Any] = {"queries": False, "attentions": False, "box_distribution": False}
    with_queries = "queries" in teacher.provides
    # a method that reads dense predictions reads those of a two-stage teacher's first stage
    provided = teacher.provides | (_FIRST_STAGE if "rois" in teacher.provides else frozenset())
    for method in methods:
        config = method.config
        if config.asks_teacher:
            raise IncompatibleError(
                f"method '{method.name}' {config.asks_teacher} in every step, so it needs the live teacher and cannot use a cache. "
                f"{method.without_live_teacher}"
            )
        if top_k is not None and config.needs_all_classes:
            raise IncompatibleError(
                f"method '{method.name}' reads the teacher's scores of all classes, but cache.top_k: {top_k} keeps only the "
                "best. Remove top_k from the recipe."
            )
        states |= set(method.state_layers)
        for need in config.needs_teacher:
            if need in _FEATURES:
                kind = resolve_feature(_FEATURES[need], student, teacher)
                # what the head reads is kept under its own name
                name = kind if kind != "head" else "memory" if "memory" in teacher.provides else "neck"
                maps.setdefault(name, set()).update(set(student.level_channels(kind)) & set(teacher.level_channels(kind)))
            # of alternatives, what this teacher provides
            for one in set(need.split("|")) & provided & {"attentions", "box_distribution", *_DENSE}:
                kept["dense_distribution" if one == "box_distribution" and not with_queries else one] = True
        # the student's decoder may be fed with the teacher's queries
        sends = "decode" in student.provides and any("decode" in need.split("|") for need in config.needs_student)
        kept["queries"] |= with_queries and sends
    return CacheFields(
        precision=precision, top_k=top_k, states=tuple(sorted(states)),
        maps={kind: tuple(sorted(strides)) for kind, strides in sorted(maps.items())},
        prepared=tuple(f"{method.name}/{method.prepared_by}" for method in methods if method.prepared_by is not None), **kept,
    )  # fmt: skip
