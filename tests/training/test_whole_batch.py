"""What a divided batch teaches is what the whole one does: for every family that counts for itself, and for every method."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.divided import CASES, COUNTS, DIVISIONS, each_process, gradient, in_passes
from workbench.methods.registry import METHODS


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert float(wanted.norm()) > 0
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Tensor]]:
    """The mean gradients of two and of three gloo processes, by case."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        torch.multiprocessing.spawn(each_process, (str(folder),), nprocs=max(DIVISIONS))  # pyright: ignore[reportPrivateImportUsage]
    return {count: load_file(folder / f"{count}.safetensors") for count in DIVISIONS}


def test_every_method_is_among_the_cases():
    assert {config["method"] for _, config in CASES.values() if config is not None} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
def test_processes_with_unequal_shares_of_a_batch_learn_what_one_learns_from_it(case: str, of_processes: dict[int, dict[str, Tensor]]):
    for count in DIVISIONS:
        assert_same(of_processes[count][case], gradient(case, 0, len(COUNTS)))


@pytest.mark.parametrize("case", CASES)
def test_parts_that_go_through_one_by_one_learn_what_the_whole_batch_does(case: str):
    for parts in DIVISIONS.values():
        assert_same(in_passes(case, parts), gradient(case, 0, len(COUNTS)))
