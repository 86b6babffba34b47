"""Monitors whether every term teaches: logs its share of the gradient and stops a run in which one does nothing for a whole epoch."""

from collections.abc import Mapping, Sequence

from torch import nn

from workbench.errors import SilentTermError
from workbench.methods.method import Method
from workbench.training.balance import is_wanted, term_gradients
from workbench.training.processes import gathered
from workbench.training.step import Terms


class TermMonitor:
    """Watches the gradient of each weighted term.

    Args:
        methods: the methods whose terms are watched.
        detection_weights: weights of the detection terms.
        term_weights: weights of the distillation terms.
        taught: terms measured since the last check, and whether any measurement found a gradient; restored on resume.
    """

    def __init__(
        self, methods: Sequence[Method], detection_weights: Mapping[str, float], term_weights: Mapping[str, float], taught: dict[str, bool]
    ):
        self.detection_weights, self.term_weights, self.taught = detection_weights, term_weights, taught
        self.wanted = {f"{method.name}.{term}" for method in methods for term in method.term_names if is_wanted(method, term)}

    def measure(self, terms: Terms, parameters: Sequence[nn.Parameter]) -> dict[str, float]:
        """Returns each weighted term's gradient norm as a share of the detection loss's, and its cosine with that gradient."""
        measured = term_gradients(terms, self.detection_weights, parameters)
        reference = measured.pop("detection")[0]
        values = {"gradient/detection": reference}
        for name, (norm, cosine) in measured.items():
            values[f"share/{name}"] = self.term_weights[name] * norm / reference if reference > 0 else 0.0
            values[f"cosine/{name}"] = cosine
            if name in self.wanted:
                own = terms.distillation.get(name)  # None if only other processes have targets for it
                teaches = norm > 0 and self.term_weights[name] > 0 and (own is None or float(own.detach()) != 0.0)
                self.taught[name] = self.taught.get(name, False) or teaches
        return values

    def check(self, step: int) -> None:
        """Raises an error if a term was silent since the last check, and starts watching anew.

        Raises:
            SilentTermError: a term with a weight and eligible targets was 0, or had no gradient, in every measurement.
        """
        found = [(name, taught) for part in gathered([dict(self.taught)]) for name, taught in part.items()]
        silent = sorted({name for name, _ in found} - {name for name, taught in found if taught})
        self.taught.clear()
        if silent:
            raise SilentTermError(
                f"step {step}: {', '.join(silent)} was 0 or had no gradient in the student for a whole epoch. Check that the teacher "
                "fits the data ('workbench evaluate' the teacher on the data), or remove the term."
            )
