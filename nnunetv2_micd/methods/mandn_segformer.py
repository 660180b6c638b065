"""M&N with a pretrained transformer as 2D network, as its authors have it; needs transformers and peft."""

import os
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from nnunetv2_micd.methods.mandn import MandNConfig, nnUNetTrainerMandN
from nnunetv2_micd.training.slice_networks import SliceNetwork
from nnunetv2_micd.utils.files import shorten
from nnunetv2_micd.utils.ranges import Between

VARIABLE = "nnUNet_micd_segformer"
"""Environment variable that names the pretrained SegFormer."""

STRIDE = 4
"""Number of pixels of a slice per pixel of SegFormer's output."""

MULTIPLE = 32
"""Height and width of a slice are multiples of it: the stride of SegFormer's deepest stage."""


@dataclass(frozen=True)
class MandNSegFormerConfig(MandNConfig):
    """Numbers of the low-rank adaptation, from pakheiyeung/M-N, commit 2e34e5d5, ``hyperparameters.py``.

    Attributes:
        pretrained: Folder or name on the Hugging Face hub of a SegFormer for semantic segmentation. If empty, the
            environment variable ``nnUNet_micd_segformer`` names it. The authors have
            ``nvidia/segformer-b2-finetuned-ade-512-512``.
        rank: Rank of the trained matrices, and the factor of their sum before it is divided by the rank.
        dropout: Dropout of their input.
    """

    pretrained: str = ""
    rank: Annotated[int, Between(1)] = 64
    dropout: Annotated[float, Between(0, 1, exclude="high")] = 0.1


class AdaptedSegFormer(nn.Module):
    """A pretrained SegFormer whose linear layers learn low-rank changes (LoRA), with a new output layer.

    What is trained: the changes of all linear layers of the encoder, all biases, the layer norms and the output layer,
    a transposed convolution that also sees every fourth pixel of the image.

    Args:
        model: A ``SegformerForSemanticSegmentation``; changed in place.
        input_channels: Number of channels of the slices. A single one is repeated; the mean of several, whose weights
            are learned, is shown in each of the model's three channels.
        output_channels: Number of classes or regions K.
        rank: Rank of the changes.
        dropout: Dropout of their input.
    """

    def __init__(self, model: Any, input_channels: int, output_channels: int, rank: int, dropout: float):
        from peft import LoraConfig, get_peft_model

        super().__init__()
        model.decode_head.classifier = nn.Identity()  # so its "logits" are the features before
        layers = [
            name
            for name, module in model.named_modules()
            if name.startswith("segformer.") and isinstance(module, nn.Linear)
        ]
        lora = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, bias="all", target_modules=layers)
        self.model = get_peft_model(model, lora)
        for module in self.model.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
        self.to_three_channels: nn.Module | None = None
        if input_channels > 1:
            self.to_three_channels = nn.Conv2d(input_channels, 3, kernel_size=1, bias=False)
            nn.init.constant_(self.to_three_channels.weight, 1 / input_channels)
        features = model.config.decoder_hidden_size + 3
        self.output = nn.ConvTranspose2d(features, output_channels, kernel_size=STRIDE, stride=STRIDE)

    def forward(self, slices: Tensor) -> Tensor:
        """Return the logits ``(N, K, height, width)`` of slices ``(N, channels, height, width)``."""
        images = slices.expand(-1, 3, -1, -1) if self.to_three_channels is None else self.to_three_channels(slices)
        features = self.model(pixel_values=images).logits
        return self.output(torch.cat((features, images[..., ::STRIDE, ::STRIDE].to(features.dtype)), dim=1))


class SegFormerSlices(SliceNetwork):
    """An adapted SegFormer on slices. It is never compiled, which the code of the model is not made for."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


def load_segformer(name: str) -> Any:
    """Load a pretrained SegFormer in float32, with the head that it was trained with.

    Args:
        name: Folder, or name on the Hugging Face hub.

    Raises:
        ImportError: transformers or peft is not installed.
        ValueError: there is no name, or nothing that can be loaded under it.
    """
    try:
        import peft  # noqa: F401
        from safetensors import SafetensorError
        from transformers import SegformerForSemanticSegmentation
    except ImportError as error:
        raise ImportError(
            f"nnUNetTrainerMandN_SegFormer needs transformers and peft ({error}); in the clone, run: "
            'pip install ".[segformer]", or train nnUNetTrainerMandN, which needs neither'
        ) from error
    if not name:
        raise ValueError(
            f"nnUNetTrainerMandN_SegFormer needs a pretrained SegFormer; set {VARIABLE} to its folder or to its name "
            "on the Hugging Face hub, such as nvidia/segformer-b2-finetuned-ade-512-512"
        )
    try:
        model, info = SegformerForSemanticSegmentation.from_pretrained(name, output_loading_info=True)
        # They would be drawn at random, and most of them stay as they are.
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("decode_head.classifier"))
        if missing:
            raise ValueError(f"{len(missing)} weights are missing: {shorten(missing)}")
        return model.float()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # a wrong name, no connection, a damaged file
        raise ValueError(
            f"There is no SegFormer to load from {name} ({' '.join(str(error).split())}); set {VARIABLE} to a folder "
            "that save_pretrained has written, or download the model first"
        ) from error


class nnUNetTrainerMandN_SegFormer(nnUNetTrainerMandN):
    """M&N with the authors' kind of 2D network, a SegFormer that was pretrained on natural images.

    See :class:`~nnunetv2_micd.methods.mandn.nnUNetTrainerMandN` for the method. Set ``nnUNet_micd_segformer`` to the
    folder of a pretrained SegFormer or to its name on the Hugging Face hub, also to continue or validate a training,
    not to predict. Departures: SGD and nnU-Net's learning rate as for network A, where the authors have AdamW with
    1e-3; z-scored intensities instead of 0 to 1; the dropout of the 2D network draws from PyTorch's generator.
    """

    config: ClassVar[MandNSegFormerConfig] = MandNSegFormerConfig()

    def build_further_networks(self) -> dict[str, nn.Module]:
        """Load the pretrained network and adapt it; the global random state stays as it was."""
        name = self.config.pretrained or os.environ.get(VARIABLE, "")
        sizes = self.num_input_channels, self.label_manager.num_segmentation_heads
        with torch.random.fork_rng(devices=[]):
            network = AdaptedSegFormer(load_segformer(name), *sizes, self.config.rank, self.config.dropout)
        return {"b": SegFormerSlices(network, (MULTIPLE, MULTIPLE))}
