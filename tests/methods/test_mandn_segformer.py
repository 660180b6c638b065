"""M&N with a pretrained SegFormer: a tiny random one, made and saved here, stands for it."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TinyDataset, make_trainer
from torch import nn

from nnunetv2_micd.export import has_second_network
from nnunetv2_micd.methods.mandn import nnUNetTrainerMandN
from nnunetv2_micd.methods.mandn_segformer import (
    VARIABLE,
    AdaptedSegFormer,
    load_segformer,
    nnUNetTrainerMandN_SegFormer,
)

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def make_model() -> Any:
    config = transformers.SegformerConfig(
        num_encoder_blocks=4,
        depths=[1, 1, 1, 1],
        hidden_sizes=[4, 4, 8, 8],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=8,
        num_labels=5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.SegformerForSemanticSegmentation(config)


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a SegFormer and name it by the environment variable."""
    folder = tmp_path / "segformer"
    make_model().save_pretrained(folder)
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def start(dataset: TinyDataset, configuration: str = "3d_fullres") -> Any:
    trainer = make_trainer(nnUNetTrainerMandN_SegFormer, dataset, configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def test_only_low_rank_changes_biases_norms_and_output_are_trained() -> None:
    network = AdaptedSegFormer(make_model(), 1, 3, rank=2, dropout=0.0)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    norms = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.LayerNorm)}
    assert norms
    assert norms <= trained
    rest = {name for name in trained - norms if "bias" not in name and not name.startswith("output")}
    assert rest
    assert all("lora_A" in name or "lora_B" in name for name in rest)
    linear = [name for name, module in make_model().named_modules() if isinstance(module, nn.Linear)]
    assert len(rest) == 2 * sum(name.startswith("segformer.") for name in linear)
    biases = {name for name, _ in network.named_parameters() if name.endswith("bias")}
    assert biases <= trained


def test_starts_from_the_features_of_the_pretrained_model() -> None:
    model = make_model().eval()
    network = AdaptedSegFormer(make_model(), 1, 3, rank=2, dropout=0.0).eval()
    images = torch.randn(2, 1, 32, 64)
    model.decode_head.classifier = nn.Identity()
    with torch.no_grad():
        features = model(images.expand(-1, 3, -1, -1)).logits
        expected = network.output(torch.cat((features, images[..., ::4, ::4].expand(-1, 3, -1, -1)), dim=1))
        torch.testing.assert_close(network(images), expected)
    assert expected.shape == (2, 3, 32, 64)


def test_several_channels_are_averaged_at_first() -> None:
    network = AdaptedSegFormer(make_model(), 2, 3, rank=2, dropout=0.0).eval()
    images = torch.randn(1, 2, 32, 32)
    assert network.to_three_channels is not None
    torch.testing.assert_close(network.to_three_channels(images), images.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    assert network(images).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_trains_and_continues(configuration: str, pretrained: Path, dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMandN_SegFormer, dataset, configuration)
    trainer.run_training()
    assert all(np.isfinite(value) for row in trainer.monitor.history for value in row.values())
    assert {"pseudo_label", "agreement"} <= set(trainer.monitor.history[-1])
    checkpoint = Path(trainer.output_folder) / "checkpoint_final.pth"
    assert not has_second_network(checkpoint)
    start, resumed = (make_trainer(nnUNetTrainerMandN_SegFormer, dataset, configuration) for _ in range(2))
    start.initialize()
    resumed.load_checkpoint(str(checkpoint))
    weights = resumed.students["b"].state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.students["b"].state_dict().items())
    for (name, before), after in zip(
        start.students["b"].named_parameters(), trainer.students["b"].parameters(), strict=True
    ):
        if not before.requires_grad:
            assert torch.equal(before, after), name  # the pretrained weights
    patch = next(iter(trainer.students["b"].parameters())).new_zeros(1, 1, *trainer.configuration_manager.patch_size)
    assert trainer.teachers["b"](patch).shape[2:] == patch.shape[2:]


def test_the_frozen_transformer_stays_as_it_is(pretrained: Path, dataset: TinyDataset) -> None:
    trainer = start(dataset)
    trainer.train_step(next(trainer.dataloader_train))  # B has momentum from now on
    trainer.iteration = 2
    for group in trainer.optimizer.param_groups:
        group["lr"] = trainer.initial_lr / 2
    before = {name: tensor.clone() for name, tensor in trainer.students["b"].state_dict().items()}
    trainer.learning = "a"
    batch = next(trainer.dataloader_train)
    turn_of_a, _ = super(nnUNetTrainerMandN, trainer).update_networks(batch, weight=1.0)
    assert "pseudo_label" in turn_of_a.unsupervised
    for kind in (trainer.students, trainer.teachers):
        assert all(torch.equal(tensor, before[name]) for name, tensor in kind["b"].state_dict().items())


def test_network_a_starts_as_without_it(pretrained: Path, dataset: TinyDataset) -> None:
    weights = []
    for trainer_class in (nnUNetTrainerMandN_SegFormer, nnUNetTrainerMandN_SegFormer.__base__):
        torch.manual_seed(1)
        trainer = make_trainer(trainer_class, dataset)
        trainer.initialize()
        weights.append([*trainer.network.parameters(), torch.get_rng_state()])
    assert all(map(torch.equal, *weights))


def test_the_config_names_the_model_too(
    pretrained: Path, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    config = replace(nnUNetTrainerMandN_SegFormer.config, pretrained=str(pretrained))
    monkeypatch.setattr(nnUNetTrainerMandN_SegFormer, "config", config)
    make_trainer(nnUNetTrainerMandN_SegFormer, dataset).initialize()


def test_no_model_is_named(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"set {VARIABLE} to its folder or to its name"):
        make_trainer(nnUNetTrainerMandN_SegFormer, dataset).initialize()


def test_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no SegFormer to load from .*nowhere"):
        load_segformer(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    with pytest.raises(ValueError, match="no SegFormer to load from"):
        load_segformer(str(tmp_path))
    make_model().segformer.save_pretrained(tmp_path / "encoder")  # without the head
    with pytest.raises(ValueError, match=r"weights are missing: decode_head\."):
        load_segformer(str(tmp_path / "encoder"))


@pytest.mark.parametrize("package", ["transformers", "peft"])
def test_without_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "\.\[segformer\]"'):
        load_segformer("anything")
