r"""Writes a formula as an equation: a line of LaTeX for each transformation that does something, and one for the distance."""

from collections.abc import Mapping

from workbench.errors import RunError
from workbench.methods.detkds.genotype import Genotype, Mode

SYMBOLS: Mapping[str, str] = {
    "global": r"F", "foreground": r"M \odot F", "instance": r"\operatorname{RoI}(F)", "logits": r"P", "localization": r"B",
}  # fmt: skip
MEANINGS: Mapping[str, str] = {
    "global": "F is a map of the pyramid, or of the encoder's memory.",
    "foreground": "F is a map. M weighs a cell by 1 over the area of the smallest target there; a second term is of the cells outside.",
    "instance": "F is a map, pooled in the box of each target.",
    "logits": "P holds the class probabilities of each candidate.",
    "localization": "B holds the boxes of candidates, which count by the teacher's best class probability.",
}
_FIRST: Mapping[str, str] = {
    "satt": r"{x} \odot \sqrt{{HW \, \operatorname{{softmax}}_{{HW}}\left( \tfrac{{1}}{{0.5\,C}} \sum\nolimits_{{C}} |{x}| \right)}}",
    "catt": r"{x} \odot \sqrt{{C \, \operatorname{{softmax}}_{{C}}\left( \tfrac{{1}}{{0.5\,HW}} \sum\nolimits_{{HW}} |{x}| \right)}}",
    "natt": r"N \, \operatorname{{softmax}}_{{N}}\left( {x} / 0.5 \right)",
    "mask": r"{x} \odot R, \quad R_{{hw}} \sim \operatorname{{Bernoulli}}(0.35)",
}
_SECOND: Mapping[str, str] = {
    "scale_r2": r"\operatorname{{maxpool}}_{{2 \times 2}}({x})",
    "multi_scale_r4": r"\operatorname{{maxpool}}_{{4 \times 4}}({x})",
    "local_s1": r"\operatorname{{patches}}_{{1 \times 1}}({x})",
    "local_s2": r"\operatorname{{patches}}_{{2 \times 2}}({x})",
    "local_s4": r"\operatorname{{patches}}_{{4 \times 4}}({x})",
    "scale": r"\tfrac{{1}}{{2}} \left( {x} + 1 \right)",
}
_THIRD: Mapping[str, str] = {
    "batch": r"\operatorname{{rows}}_{{N}}({x})",
    "channel": r"\operatorname{{rows}}_{{NC}}({x})",
    **{f"norm_{axis}": rf"{{x}} / \lVert {{x}} \rVert_{{{{{axis}}}}}" for axis in ("N", "C", "HW")},
    **{f"softmax_{axis}": rf"\operatorname{{{{softmax}}}}_{{{{{axis}}}}}({{x}})" for axis in ("N", "C", "HW")},
    **{f"logsoftmax_{axis}": rf"\log \operatorname{{{{softmax}}}}_{{{{{axis}}}}}({{x}})" for axis in ("N", "C", "HW")},
    "min_max_normalize": r"\left( {x} - \min {x} \right) / \left( \max {x} - \min {x} \right)",
    "batchnorm": r"\left( {x} - \mu_{{C}} \right) / \sigma_{{C}}",
    "pow2": r"\left( {x} \right)^2",
}
_ALIKE: Mapping[str, str] = {
    "l1": r"\left\langle |z^S - z^T| \right\rangle",
    "l2": r"\left\langle (z^S - z^T)^2 \right\rangle",
    "smooth_l1": r"\left\langle \operatorname{smooth}_{L1}(z^S - z^T) \right\rangle",
    "pear": r"\left\langle 1 - r_{C}(z^S, z^T) \right\rangle",
}
_CORRECTED: Mapping[str, str] = {
    **_ALIKE,
    "cos": r"\left\langle 1 - \cos_{C}(z^S, z^T) \right\rangle",
    "cor": r"\left\langle \left( 1 - r_{N}(z^S, z^T) \right)^{2.02} \right\rangle",
    "ssim": r"\left\langle 1 - \operatorname{SSIM}(z^S, z^T) \right\rangle",
    "iou": r"\left\langle 1 - \operatorname{IoU}(z^S, z^T) \right\rangle",
    "giou": r"\left\langle 1 - \operatorname{GIoU}(z^S, z^T) \right\rangle",
}
_OFFICIAL: Mapping[str, str] = {
    **_ALIKE,
    "cos": r"\left\langle \cos_{C}(z^S, z^T) \right\rangle",
    "cor": r"\log_2 \sum \left| r_{N}(z^S, z^T) - 1 \right|^{2.02}",
    "kl": r"\left\langle z^T \left( \log z^T - z^S \right) \right\rangle",
}
# what the chain does not name itself, a divergence takes over channels
_AXIS: Mapping[str, str] = {
    "norm_HW": "HW", "softmax_HW": "HW", "logsoftmax_HW": "HW", "channel": "HW", "norm_N": "N", "softmax_N": "N", "logsoftmax_N": "N",
}  # fmt: skip


def equation(genotype: Genotype, mode: Mode) -> str:
    r"""Returns a formula as LaTeX: how student and teacher are transformed, and what is computed of both.

    Angle brackets are means over everything that is left. A step that changes nothing has no line.

    Example:
        >>> print(equation(Genotype("logits", distance="l1"), "corrected"))
        \begin{aligned}
        z &= P \\
        \mathcal{L} &= \left\langle |z^S - z^T| \right\rangle
        \end{aligned}

    Args:
        genotype: the formula.
        mode: how it is computed.

    Raises:
        RunError: this version has no such operation.
    """
    known = _OFFICIAL if mode == "official" else {**_CORRECTED, "kl": _divergence(genotype)}
    try:
        steps = [
            table[gene]
            for table, gene in ((_FIRST, genotype.t1), (_SECOND, genotype.t2), (_THIRD, genotype.t3))
            if gene not in ("no", "scale_r1")
        ]
        value, distance = SYMBOLS[genotype.input], known[genotype.distance]
        if mode == "official" and genotype.input == "instance":
            value, steps = "F", [*steps, r"\operatorname{{RoI}}({x})"]  # pooled behind the chain
    except KeyError as error:
        raise RunError(f"this version has no operation {error}, which '{genotype}' has. Open it with the version it is of.") from error
    lines: list[str] = []
    for step, name in zip(steps, [*"ABC"[: len(steps) - 1], "z"], strict=False):
        if not lines and len(value) > 1:
            lines.append(rf"X &= {value}")
            value = "X"
        lines.append(f"{name} &= {step.format(x=value)}")
        value = name
    if value != "z":
        lines.append(f"z &= {value}")
    return "\n".join([r"\begin{aligned}", " \\\\\n".join([*lines, rf"\mathcal{{L}} &= {distance}"]), r"\end{aligned}"])


def _divergence(genotype: Genotype) -> str:
    """Returns the corrected ``kl``: over the axis that the third transformation names, of what is a distribution already or made one."""
    axis = _AXIS.get(genotype.t3, "C")
    if genotype.t3.startswith("softmax"):
        of = "p = z"
    else:
        of = "p = e^z" if genotype.t3.startswith("logsoftmax") else rf"p = \operatorname{{softmax}}_{{{axis}}}(z)"
    return rf"\left\langle \sum\nolimits_{{{axis}}} p^T \log \frac{{p^T}}{{p^S}} \right\rangle, \quad {of}"
