"""What of a teacher's answers a cache keeps: what the methods of a recipe read."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from workbench.detectors.detector import Detector
from workbench.errors import IncompatibleError
from workbench.methods.levels import Feature, resolve_feature
from workbench.methods.method import Method

Precision = Literal["fp16", "fp32"]
# from a need of a method to the choice of feature that it stands for
_FEATURES: dict[str, Feature] = {"memory|neck": "auto", "memory": "memory", "neck": "neck", "backbone": "backbone"}


class CacheFields(BaseModel, frozen=True, extra="forbid"):
    """Fields of a ``DetectorOutput`` that are kept, for all images alike. Logits and boxes of all layers always are.

    Attributes:
        precision: of logits, states, maps, attentions and distributions. Boxes, references and query vectors are float32: a half has
            11 bits, which move an edge of a small box by a hundredth of its side.
        top_k: best classes kept of each query; None: all.
        states: layers whose decoder states are kept.
        maps: by kind (memory, neck, backbone), the strides of the levels.
        queries: what goes into the decoder.
        attentions: both attention maps.
        box_distribution: of families that have it.
        prepared: what methods prepare of an answer (``Method.prepare``), as ``method/hash of its settings``; float32. A cache that has it
            of other settings serves all the same, and every step prepares it anew.
    """

    precision: Precision = "fp16"
    top_k: int | None = None
    states: tuple[int, ...] = ()
    maps: dict[str, tuple[int, ...]] = {}
    queries: bool = False
    attentions: bool = False
    box_distribution: bool = False
    prepared: tuple[str, ...] = ()

    @property
    def large(self) -> list[str]:
        """Kept fields that grow with the cells of the image: their size is to be accepted before they are written."""
        return [*(f"{kind} maps" for kind in sorted(self.maps)), *(["attention maps"] if self.attentions else [])]

    def lacks(self, wanted: "CacheFields") -> list[str]:
        """What of ``wanted`` is not kept here, for people."""
        missing = [f"states of layer {layer}" for layer in wanted.states if layer not in self.states]
        for kind, strides in wanted.maps.items():
            missing += [f"{kind} at stride {stride}" for stride in strides if stride not in self.maps.get(kind, ())]
        missing += [name for name in ("queries", "attentions", "box_distribution") if getattr(wanted, name) and not getattr(self, name)]
        return missing


def fields_of(
    methods: Sequence[Method], student: Detector, teacher: Detector, precision: Precision = "fp16", top_k: int | None = None
) -> CacheFields:
    """What the methods of a recipe read.

    Args:
        methods: as built for the pair.
        student: whose levels are taught.
        teacher: whose answers are kept.
        precision: see ``CacheFields``.
        top_k: see ``CacheFields``.

    Raises:
        IncompatibleError: a method needs the live teacher, or all classes where only the best are kept; names it.
    """
    states: set[int] = set()
    maps: dict[str, set[int]] = {}
    kept: dict[str, Any] = {"queries": False, "attentions": False, "box_distribution": False}
    for method in methods:
        config = method.config
        if "decode" in config.needs_teacher:
            raise IncompatibleError(
                f"method '{method.name}' asks the teacher's decoder about queries of its own in every step: it needs "
                f"the live teacher, a cache will not do. {method.without_live_teacher}"
            )
        if top_k is not None and config.needs_all_classes:
            raise IncompatibleError(
                f"method '{method.name}' reads the teacher's scores of all classes; cache.top_k: {top_k} keeps the "
                "best alone. Leave top_k out."
            )
        states |= set(method.state_layers)
        for need in config.needs_teacher:
            if need in _FEATURES:
                kind = resolve_feature(_FEATURES[need], student, teacher)
                maps.setdefault(kind, set()).update(set(student.level_channels(kind)) & set(teacher.level_channels(kind)))
            elif need in ("attentions", "box_distribution"):
                kept[need] = True
        # what passes through the student's decoder may be the teacher's queries
        kept["queries"] |= "decode" in config.needs_student
    return CacheFields(
        precision=precision, top_k=top_k, states=tuple(sorted(states)),
        maps={kind: tuple(sorted(strides)) for kind, strides in sorted(maps.items())},
        prepared=tuple(f"{method.name}/{method.prepared_by}" for method in methods if method.prepared_by is not None), **kept,
    )  # fmt: skip
