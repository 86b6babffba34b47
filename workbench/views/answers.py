"""Shows whether distillation helped: a sentence, a card for each distilled arm, and the same as text to copy."""

from collections.abc import Sequence
from typing import NamedTuple

from workbench.analysis.detection.ap_tests import LEAST_SEEDS, Verdict
from workbench.analysis.report.answer import Answer, headline
from workbench.views.rendering import render
from workbench.views.style import VERDICTS, VerdictStyle

CAPTION = (
    "Each difference is the mean AP of the arm minus that of the undistilled runs, in points of AP, with its 95 % interval. Equal steps: "
    "both took as many optimiser steps. Equal compute: the arm was shortened to the seconds that the undistilled run took."
)


class Line(NamedTuple):
    """One difference of a card.

    Attributes:
        what: what was equal: steps or compute.
        difference: points of AP with a sign; a dash if it is not known.
        interval: its 95 % interval in brackets; empty if it is not known.
        word: the verdict in words.
        style: hue and sign of the verdict; None if there is no verdict.
    """

    what: str
    difference: str
    interval: str
    word: str
    style: VerdictStyle | None


class Card(NamedTuple):
    """What is shown of one distilled arm.

    Attributes:
        title: name of the arm, after its recipe if several recipes are shown.
        split: split that every AP of the card is of.
        lines: differences at equal steps and at equal compute.
        accuracy: AP of the arm and of the undistilled runs.
        teacher: how far the arm is from its teacher.
        seeds: how many seeds there are, of how many a statement about the method needs.
    """

    title: str
    split: str
    lines: tuple[Line, ...]
    accuracy: str
    teacher: str
    seeds: str


def cards(answers: Sequence[Answer]) -> list[Card]:
    """Returns a card for each answer, in their order."""
    several = len({one.recipe for one in answers}) > 1
    return [_card(one, f"{one.recipe} · {one.arm}" if several else one.arm) for one in answers]


def answers_html(answers: Sequence[Answer]) -> str:
    """Returns the sentence and the cards as HTML with its own style; names are escaped."""
    return render("answers.html.j2", headline=headline(answers), cards=cards(answers))


def answers_text(answers: Sequence[Answer], runs: Sequence[str]) -> str:
    """Returns the sentence and the numbers of every arm as plain text, for a message or a notebook.

    Args:
        answers: answers of the arms.
        runs: names of the runs that they were computed from.
    """
    lines = [headline(answers), ""]
    for card in cards(answers):
        found = [f"{line.what} {line.difference} {line.interval} {line.word}".replace("  ", " ") for line in card.lines]
        lines.append(f"{card.title}, AP ({card.split}): {'; '.join(found)}. {card.accuracy}. {card.teacher}. {card.seeds}.")
    return "\n".join([*lines, "", CAPTION, f"Runs: {', '.join(runs)}"])


def _card(one: Answer, title: str) -> Card:
    lines = (_line("equal steps", one.equal_steps), _line("equal compute", one.equal_compute))
    aps = (("distilled", one.distilled), ("undistilled", one.undistilled))
    accuracy = ", ".join(f"{100 * value:.1f} {name}" for name, value in aps if value is not None)
    return Card(title, one.split, lines, f"AP at equal steps: {accuracy or 'not known'}", _teacher(one), _seeds(one))


def _line(what: str, verdict: Verdict | None) -> Line:
    if verdict is None:
        return Line(what, "–", "", "not trained", None)
    low, high = 100 * verdict.low, 100 * verdict.high
    return Line(what, f"{100 * verdict.difference:+.1f}", f"[{low:+.1f}, {high:+.1f}]", verdict.word, VERDICTS[verdict.word])


def _teacher(one: Answer) -> str:
    if one.teacher is None or one.distance is None:
        return "The teacher's AP on this split is not known"
    return f"{100 * abs(one.distance):.1f} AP {'below' if one.distance >= 0 else 'above'} the teacher ({100 * one.teacher:.1f})"


def _seeds(one: Answer) -> str:
    verdict = one.equal_steps or one.equal_compute
    pairs = 0 if verdict is None else min(verdict.seeds)
    if verdict is not None and verdict.about == "this method":
        return f"{pairs} pairs of seeds, so this is a statement about the method"
    return f"{pairs} of the {LEAST_SEEDS} seeds that a statement about the method needs"
