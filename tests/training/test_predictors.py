"""Prediction in batches gives what nnU-Net's own prediction gives."""

import pytest
import torch
from helpers import TinyDataset, make_trainer

from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.training.predictors import place_for, predict_in_batches, predictor_of


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_logits_are_those_of_nnunet_without_mirroring(
    configuration: str, batch_size: int, dataset: TinyDataset
) -> None:
    """Of images larger and smaller than a patch, also where a batch holds windows of several images."""
    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset, configuration)
    trainer.on_train_start()
    trainer.set_deep_supervision_enabled(False)
    network, images = trainer.teachers["a"], trainer.unlabeled_images
    network.decoder.deep_supervision = False
    predictor = predictor_of(trainer, network)
    predictor.use_mirroring = False
    predicted = dict(predict_in_batches(trainer, network, images, images.identifiers, batch_size))
    assert list(predicted) == images.identifiers
    for case, logits in predicted.items():
        expected = predictor.predict_sliding_window_return_logits(torch.from_numpy(images.load_image(case)[:]))
        assert logits.shape == expected.shape
        # nnU-Net sums in half precision, which rounds to whole numbers in the corners of an image, where windows weigh
        # next to nothing.
        assert torch.isclose(logits, expected.float(), atol=0.03, rtol=0.03).float().mean() > 0.98
        assert (logits - expected).abs().max() < 0.6


def test_a_gpu_holds_whole_images_if_it_has_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("mem_get_info", (100, 200)), ("memory_reserved", 50), ("memory_allocated", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert place_for(130, gpu) == gpu
    assert place_for(131, gpu) == cpu
    assert place_for(1, cpu) == cpu
