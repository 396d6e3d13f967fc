"""Where a token stands: sinusoids, learned tables, 2-D sines of images, rotations of queries and keys."""

from polyhead.nn.positions.learned import LearnedPositions
from polyhead.nn.positions.rotary import Rotary, rotate
from polyhead.nn.positions.sine_2d import SinePositions2d
from polyhead.nn.positions.sinusoid import ScaledSinusoidPositions, SinusoidPositions, sinusoid

__all__ = [
    "LearnedPositions",
    "Rotary",
    "ScaledSinusoidPositions",
    "SinePositions2d",
    "SinusoidPositions",
    "rotate",
    "sinusoid",
]
