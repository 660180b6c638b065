"""What a training step has to compute: which network passes over which images, with gradient or without."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pass:
    """A pass of one network over a batch of nnU-Net's size.

    Attributes:
        network: name of the student, or of its teacher.
        images: labeled or unlabeled ones.
        gradient: whether a backward pass follows.
        teacher: whether it is the teacher's.
        times: how often; a part where only a part of the network is run.
    """

    network: str
    images: Literal["labeled", "unlabeled"]
    gradient: bool = True
    teacher: bool = False
    times: float = 1
