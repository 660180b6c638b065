"""Prediction in batches gives what nnU-Net's own prediction gives."""

from typing import Any

import pytest
import torch
from helpers import TinyDataset, make_trainer

from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.training import predictors
from nnunetv2_micd.training.predictors import predict_in_batches, predictor_of


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_logits_are_those_of_nnunet_without_mirroring(
    configuration: str, batch_size: int, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images larger and smaller than a patch, also where a batch holds windows of several images.

    With a batch of 3, as if the logits of an image did not fit into the memory of the device.
    """
    zeros = torch.zeros

    def out_of_memory(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            raise torch.OutOfMemoryError
        return zeros(*args, **kwargs)

    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset, configuration)
    trainer.on_train_start()
    trainer.set_deep_supervision_enabled(False)
    network, images = trainer.teachers["a"], trainer.unlabeled_images
    network.decoder.deep_supervision = False
    predictor = predictor_of(trainer, network)
    predictor.use_mirroring = False
    with monkeypatch.context() as patch:
        if batch_size == 3:
            patch.setattr(predictors.torch, "zeros", out_of_memory)
        predicted = dict(predict_in_batches(trainer, network, images, images.identifiers, batch_size))
    assert list(predicted) == images.identifiers
    for case, logits in predicted.items():
        expected = predictor.predict_sliding_window_return_logits(torch.from_numpy(images.load_image(case)[:]))
        assert logits.shape == expected.shape
        # nnU-Net sums in half precision, which rounds to whole numbers in the corners of an image, where windows weigh
        # next to nothing.
        assert torch.isclose(logits, expected.float(), atol=0.03, rtol=0.03).float().mean() > 0.98
        assert (logits - expected).abs().max() < 0.6
