"""Pictures of an agent: what it was asked for and what it reached, and an episode."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError, MissingExtraError
from polyhead.protocols import Picture
from polyhead_agents.acting import play
from polyhead_agents.episodes import EpisodeData

if TYPE_CHECKING:
    from torch import nn

    from polyhead_agents.task import OfflineTask

__all__ = ["animation", "pictures"]

# Okabe and Ito's palette.
MODEL, RECORDED = "#0072B2", "#E69F00"
SHARES = (0.25, 0.5, 0.75, 1.0)
EPISODES = 3
SEEDS = 3_000_000
MAX_FRAMES = 300
FRAME_MS = 33
HEIGHT = 200
"""Pixels of an animation, at most."""


def pictures(task: OfflineTask, model: nn.Module, data: EpisodeData) -> list[Picture]:
    """Return the pictures of a trained agent; of recorded returns only where there is no environment."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    returns = data.episodes.returns
    inner: Any = getattr(model, "module", model).eval()
    with matplotlib.rc_context({"font.size": 10, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(4.8, 3.2), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        if data.env:
            # Towards the target from the recorded mean, so that negative returns are in order too.
            low = float(returns.min())
            asked = [low + share * (task.target - low) for share in SHARES]
            seeds = range(SEEDS, SEEDS + EPISODES)
            reached = [play(inner, data.env, seeds, target=target).returns for target in asked]
            axes.plot([min(asked), max(asked)], [min(asked), max(asked)], ":", color="0.5", label="as asked")
            axes.errorbar(
                asked,
                [each.mean() for each in reached],
                yerr=[each.std() for each in reached],
                fmt="o-",
                color=MODEL,
                capsize=3,
                label="reached",
            )
            axes.axhline(returns.mean(), color=RECORDED, linestyle="--", label="mean of the recording")
            axes.set(xlabel="return asked for", ylabel="return")
            axes.legend(frameon=False)
            title = "Returns asked for and reached"
            caption = f"Means and deviations of {EPISODES} episodes each. {data.provenance}"
        else:
            axes.hist(returns, bins=30, color=RECORDED)
            axes.set(xlabel="return", ylabel="recorded episodes")
            title, caption = "Returns of the recording", data.provenance
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    made = [Picture(title, caption, buffer.getvalue())]
    if data.env:
        try:
            played = play(inner, data.env, [SEEDS], target=task.target, render=True)
            made.append(
                Picture(
                    "An episode",
                    f"{data.env}, return {played.returns[0]:g}; at most {MAX_FRAMES} pictures. {data.provenance}",
                    animation(played.frames, "PNG"),
                )
            )
        except (MissingExtraError, DataError):
            return made  # drawing needs a simulator's extra, which training does not
    return made


def animation(frames: Sequence[NDArray[np.uint8]], form: Literal["GIF", "PNG"]) -> bytes:
    """Return an animation, as GIF or as animated PNG, which browsers play too.

    Raises:
        DataError: the environment drew nothing.
    """
    from PIL import Image

    if not frames:
        raise DataError("The environment draws no pictures: leave --render out.")
    images = []
    for frame in frames[:: -(-len(frames) // MAX_FRAMES)]:
        image = Image.fromarray(frame)
        if image.height > HEIGHT:
            image = image.resize((image.width * HEIGHT // image.height, HEIGHT))
        images.append(image.quantize(32))
    buffer = io.BytesIO()
    images[0].save(buffer, format=form, save_all=True, append_images=images[1:], duration=FRAME_MS, loop=0)
    return buffer.getvalue()
