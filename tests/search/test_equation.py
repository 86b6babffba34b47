"""A formula as an equation, and where its operations are computed."""

import ast
from functools import lru_cache

import pytest
import torch
from latex2mathml.converter import convert

from tests.conftest import ROOT
from workbench.errors import RunError
from workbench.methods.detkds import distances, operations
from workbench.methods.detkds.genotype import INPUTS, NAMED, Genotype, genotypes, refusal
from workbench.search.equation import MEANINGS, SYMBOLS, equation
from workbench.search.operation_code import code_of
from workbench.search.space import MODES


@lru_cache
def legal(mode, input):
    return [genotype for genotype in genotypes(input, added=True) if refusal(genotype, mode) is None]


def test_the_released_formula_reads_as_the_paper_writes_it():
    assert equation(NAMED["released_global"], "corrected").split(" \\\\\n") == [
        r"\begin{aligned}" "\n"
        r"A &= F \odot \sqrt{C \, \operatorname{softmax}_{C}\left( \tfrac{1}{0.5\,HW} \sum\nolimits_{HW} |F| \right)}",
        r"B &= \operatorname{maxpool}_{2 \times 2}(A)",
        r"z &= B / \lVert B \rVert_{N}",
        r"\mathcal{L} &= \left\langle |z^S - z^T| \right\rangle" "\n" r"\end{aligned}",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("input", INPUTS)
def test_formulas_that_differ_have_equations_that_differ(input, mode):
    texts: dict[str, set[Genotype]] = {}
    for genotype in legal(mode, input):
        texts.setdefault(equation(genotype, mode), set()).add(genotype)
    for alike in texts.values():  # a single cell's maximum is that cell
        kept = {(one.t1, one.t2.replace("scale_r1", "no"), one.t3, one.distance) for one in alike}
        assert len(kept) == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("input", INPUTS)
def test_every_operation_is_valid_latex(input, mode):
    parts = [[getattr(one, place) for one in legal(mode, input)] for place in ("t1", "t2", "t3", "distance")]
    for place, genes in zip(("t1", "t2", "t3", "distance"), parts, strict=True):
        for gene in sorted(set(genes)):
            text = equation(next(one for one in legal(mode, input) if getattr(one, place) == gene), mode)
            assert text.count("{") == text.count("}") and text.count(r"\left") == text.count(r"\right")
            assert "merror" not in convert(text)


def test_every_input_has_a_symbol_that_is_explained():
    assert set(SYMBOLS) == set(MEANINGS) == set(INPUTS)


def test_a_divergence_is_over_the_axis_that_the_code_takes():
    values = torch.randn(3, 4, 5, 6)
    for genotype in legal("corrected", "global"):
        if genotype.distance == "kl" and genotype.t1 == genotype.t2 == "no":
            told = equation(genotype, "corrected").rsplit(r"\sum\nolimits_{", 1)[1].split("}")[0]
            done = distances._distribution(genotype, distances.Knowledge(values))
            taken = distances._axis(genotype, done.values)
            assert {0: "N", 1: "C", 2: "HW"}[taken] == told, genotype
            assert torch.allclose(done.values.exp().sum(taken), torch.ones(()))


def test_the_code_of_an_operation_is_in_the_function_that_the_table_calls(monkeypatch: pytest.MonkeyPatch):
    """Replaces each named function by one that notes its call, and computes the formula."""
    maps = torch.rand(2, 4, 8, 8) + 0.1
    for name, gene in [("spatial_attention", "satt"), ("channel_attention", "catt"), ("batch_attention", "natt")]:
        assert _called(monkeypatch, name, lambda gene=gene: operations.FIRST[gene](operations.Knowledge(maps), torch.Generator()))
        assert code_of(Genotype("global", t1=gene), "corrected")[0].function == name
    for name, gene in [("pooled", "scale_r2"), ("pooled", "multi_scale_r4"), ("patches", "local_s2"), ("halved", "scale")]:
        assert _called(monkeypatch, name, lambda gene=gene: operations.SECOND[gene](operations.Knowledge(maps), False))
        assert code_of(Genotype("global", t2=gene), "corrected")[1].function == name
    for gene, function in operations.THIRD.items():
        made = function.__qualname__.split(".")[0]
        assert code_of(Genotype("global", t3=gene), "corrected")[2].function == made
    for gene, function in distances.CORRECTED.items():
        place = code_of(Genotype("global", distance=gene), "corrected")[3]
        assert place.function in (function.__name__, "formula_loss")


def _called(monkeypatch: pytest.MonkeyPatch, name: str, use) -> bool:
    calls: list[str] = []
    real = getattr(operations, name)
    with monkeypatch.context() as patch:
        patch.setattr(operations, name, lambda *a, **k: (calls.append(name), real(*a, **k))[1])
        use()
    return calls == [name]


@lru_cache
def functions(file: str) -> dict[str, int]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name: node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_function_is_one_of_the_file():
    for mode in MODES:
        for input in INPUTS:
            for genotype in legal(mode, input)[::50]:
                for place in code_of(genotype, mode):
                    assert functions(place.file)[place.function] == place.line
                    assert getattr(genotype, place.position) == place.choice


def test_an_operation_of_another_version_is_named():
    foreign = Genotype("global", t3="wavelet")  # type: ignore[arg-type]
    for read in (equation, code_of):
        with pytest.raises(RunError, match="no operation 'wavelet'"):
            read(foreign, "corrected")
