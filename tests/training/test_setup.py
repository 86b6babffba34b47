"""The frozen teacher sees images as it was trained on them."""

import dataclasses

import torch

from tests.examples import SPEC, images_of, small_detector
from workbench.training.setup import FrozenTeacher

OTHER = dataclasses.replace(SPEC, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))


def test_images_normalised_for_the_student_give_the_teachers_answer_on_its_own_normalisation_and_padding_stays_zero():
    detector = small_detector()
    own, padding = images_of((40, 48), (32, 64))
    mean, std = torch.tensor(SPEC.mean)[:, None, None], torch.tensor(SPEC.std)[:, None, None]
    pixels = own * std + mean
    seen = (pixels - torch.tensor(OTHER.mean)[:, None, None]) / torch.tensor(OTHER.std)[:, None, None]
    seen = seen * ~padding[:, None]
    fed: list[torch.Tensor] = []
    detector.register_forward_pre_hook(lambda _, arguments: fed.append(arguments[0]))
    with torch.no_grad():
        wanted = detector(own, padding)
    answer = FrozenTeacher(detector, OTHER)(seen, padding)
    torch.testing.assert_close(answer.logits, wanted.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(answer.boxes, wanted.boxes, atol=1e-5, rtol=0)
    assert (fed[1][padding[:, None].expand_as(own)] == 0).all()
    torch.testing.assert_close(fed[1], own, atol=1e-5, rtol=0)


def test_equal_normalisation_leaves_images_as_they_are():
    detector, (images, padding) = small_detector(), images_of((32, 32))
    fed: list[torch.Tensor] = []
    detector.register_forward_pre_hook(lambda _, arguments: fed.append(arguments[0]))
    FrozenTeacher(detector, SPEC)(images, padding)
    assert fed[0] is images


def test_a_teacher_is_never_trained():
    teacher = FrozenTeacher(small_detector().train(), SPEC)
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(*images_of((32, 32))).logits.requires_grad
