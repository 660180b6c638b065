"""The page of a ranking: a picture of each proposal, and what to do next."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment
from matplotlib.figure import Figure

from nnunetv2_micd.ranking.assess import DisputedSlice
from nnunetv2_micd.utils.figures import default_style, label_legend, outline

PANEL = 2.8
"""Width of a panel in inches."""


def write_page(
    file: Path,
    facts: Mapping[str, str],
    proposals: Sequence[DisputedSlice],
    rows: Sequence[Mapping[str, str]],
    names: Mapping[int, str],
    steps: Sequence[str],
) -> None:
    """Write the page, which needs no other file and no network.

    Args:
        file: File to write.
        facts: What the ranking is of, as values by name.
        proposals: The proposals in their order.
        rows: Figures of each proposal by name, in the same order.
        names: Names of the labels.
        steps: Sentences that say what to do next.
    """
    source = resources.files("nnunetv2_micd.ranking").joinpath("page.html").read_text(encoding="utf-8")
    shown = [
        (proposal.case, row, base64.b64encode(_draw(proposal, names)).decode())
        for proposal, row in zip(proposals, rows, strict=True)
    ]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    file.write_text(environment.from_string(source).render(facts=facts, proposals=shown, steps=steps), encoding="utf-8")


def _draw(proposal: DisputedSlice, names: Mapping[int, str]) -> bytes:
    """Return a picture as PNG: the image, the prediction of each network, and where the first one is uncertain."""
    titles = ["image", *proposal.labels, "uncertainty"]
    height, width = proposal.image.shape[:2]  # colors have an axis more
    with default_style():
        figure = Figure(
            figsize=(len(titles) * PANEL, min(2.0, max(0.5, height * proposal.aspect / width)) * PANEL + 0.7),
            layout="constrained",
        )
        panels = figure.subplots(1, len(titles))
        for panel, title in zip(panels, titles, strict=True):
            panel.imshow(proposal.image, cmap="gray", aspect=proposal.aspect)
            panel.set(xticks=[], yticks=[])
            panel.set_title(title, fontsize=10)
            if title in proposal.labels:
                outline(panel, proposal.labels[title])
        heat = proposal.uncertainty
        panels[-1].imshow(heat, cmap="autumn_r", vmin=0, vmax=1, alpha=np.sqrt(heat), aspect=proposal.aspect)
        panels[0].set_xlabel("slice {} of {}".format(*proposal.position), fontsize=9)
        label_legend(figure, names, proposal.labels.values())
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
