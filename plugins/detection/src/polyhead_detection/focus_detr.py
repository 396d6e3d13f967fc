"""Focus-DETR, and the DINO that is left when its switches are off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from polyhead.errors import ConfigError, ShapeError, UnknownNameError
from polyhead.models import Pretrained
from polyhead_detection.backbone import Neck, make_backbone, normalise
from polyhead_detection.boxes import logit
from polyhead_detection.decoder import MLP, Decoder
from polyhead_detection.deformable import SMALL
from polyhead_detection.denoising import Denoising
from polyhead_detection.encoder import Encoded, Encoder, EncoderLayer, Selection, take
from polyhead_detection.geometry import Geometry, Size
from polyhead_detection.selector import PRIOR, ForegroundSelector, budgets

__all__ = ["DINO", "DINOConfig", "Detected", "FocusDETR", "FocusDETRConfig", "Predicted"]

PRETRAINED_MEAN = (123.675, 116.28, 103.53)
PRETRAINED_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class FocusDETRConfig:
    """Sizes and switches. The defaults are the corrected model; ``release`` has the published one.

    Raises:
        ConfigError: values that do not fit together.
    """

    classes: int = 80
    backbone: str = "resnet50"
    """A model of timm, or "small" with ``widths``."""
    widths: tuple[int, ...] = (64, 96, 128)
    freeze_stem: bool = False
    backbone_lr: float = 0.1
    """Share of the learning rate that the backbone has: it usually begins with weights that know pictures."""
    levels: int = 4
    dim: int = 256
    groups: int = 32
    """Of the neck's group norms."""
    heads: int = 8
    points: int = 4
    ff_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    queries: int = 900
    dropout: float = 0.0
    fts: Literal["score", "random", "none"] = "score"
    """Which tokens the encoder updates: the best scored, random ones (to compare with), or all."""
    top_down: bool = True
    """Whether scores of a map modulate those of the next finer one."""
    rho: float = 0.5
    """Share of the tokens that are kept."""
    cascade: tuple[float, ...] = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)
    """Share of the kept tokens that each layer updates."""
    fine_tokens: int = 300
    """Tokens of a layer that attend to each other; 0: none."""
    fine_score: Literal["product", "foreground", "category", "release"] = "product"
    """product: of both probabilities; release: of both logits, whose sign is lost."""
    ranges: Literal["release", "overlap"] | tuple[tuple[float, float], ...] = "overlap"
    """Which sizes of objects each level is foreground for; in pixels, or by the rule of the release or the paper."""
    value: Literal["refreshed", "static"] = "refreshed"
    """What encoder layers read: tokens as the layer before left them, or the neck's (released)."""
    padding: Literal["exact", "release"] = "exact"
    """exact: an image gives the same whatever it is batched with; release: budgets, norms and positions of the batch,
    and empty denoising queries count as background."""
    temperature: float = 10_000.0
    """Of the sines of tokens' positions."""
    position_offset: float = -0.5
    denoising: int = 100
    """Denoising queries of each sign, shared among an image's objects; 0: none."""
    label_noise: float = 0.5
    box_noise: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if not 0 < self.rho <= 1 or not all(0 < share <= 1 for share in self.cascade):
            raise ConfigError(f"rho is {self.rho} and cascade {list(self.cascade)}: shares are above 0 and at most 1.")
        if self.fts != "none" and len(self.cascade) != self.encoder_layers:
            raise ConfigError(
                f"cascade has {len(self.cascade)} shares and the encoder {self.encoder_layers} layers: one for each."
            )
        if not isinstance(self.ranges, str) and len(self.ranges) != self.levels:
            raise ConfigError(f"ranges has {len(self.ranges)} pairs and there are {self.levels} levels: one for each.")
        if self.dim % 8 or self.dim % self.groups:
            raise ConfigError(f"dim is {self.dim}: it must be a multiple of 8 and of groups, {self.groups}.")
        if min(self.classes, self.queries, self.decoder_layers) < 1:
            raise ConfigError(
                f"classes is {self.classes}, queries {self.queries}, decoder_layers {self.decoder_layers}: "
                "each is 1 or more."
            )

    @classmethod
    def release(cls, name: str = "12-epoch") -> Self:
        """Return the published model: "12-epoch", "24-epoch" or "36-epoch" (other sines), with ResNet-50.

        Raises:
            UnknownNameError: no such release.
        """
        known = ("12-epoch", "24-epoch", "36-epoch")
        if name not in known:
            raise UnknownNameError("release", name, known)
        config = cls(fine_score="release", ranges="release", value="static", padding="release", freeze_stem=True)
        return replace(config, temperature=20.0, position_offset=0.0) if name == "36-epoch" else config


class Predicted(NamedTuple):
    """What a layer says of its queries."""

    logits: Tensor
    """Of each class, (B, Q, classes)."""
    boxes: Tensor
    """Centre x, y, width, height in units of the image, (B, Q, 4)."""


class Detected(NamedTuple):
    """What a model returns."""

    logits: Tensor
    """Those of the last layer, (B, Q, classes)."""
    boxes: Tensor
    """Those of the last layer: centre x, y, width, height in units of the image, (B, Q, 4)."""
    query_mask: Tensor
    """bool (B, Q), False = a query that an image has too few tokens for."""
    layers: tuple[Predicted, ...]
    """Of each decoder layer."""
    proposals: Predicted
    """Of the encoder: where the queries began."""
    denoised: tuple[Predicted, ...]
    """Of each decoder layer for the denoising queries; empty without them."""
    foreground: Tensor
    """Logits of the tokens, (B, N); zeros where tokens are not scored."""
    places: Tensor
    """x and y in pixels and level of the tokens, (B, N, 3)."""
    token_mask: Tensor
    """bool (B, N), False = padding."""
    kept: tuple[Tensor, ...]
    """For each encoder layer bool (B, N), True = updated."""


# torch.export writes a named tuple that a program returns only under a name that it was told; it has no public call.
for _kind in (Predicted, Detected):
    _pytree._register_namedtuple(_kind, serialized_type_name=f"polyhead_detection.{_kind.__name__}")


class _Front(NamedTuple):
    """What comes before the encoder, for images on one canvas."""

    geometry: Geometry
    maps: list[Tensor]
    """(B, H·W, dim) of each level."""
    scores: list[Tensor]
    """(B, H·W) of each level; none without a selector."""


class FocusDETR(Pretrained, nn.Module):
    """Detect objects, spending the encoder's work on the tokens that look like objects.

    A pyramid of maps becomes tokens; a selector scores them; each encoder layer updates a shrinking share of the best;
    the best tokens propose boxes, which the decoder's queries refine.

    Complexity: an encoder layer of K tokens takes O(K·dim² + N·dim² + K·dim·L·P + k²·dim) with k fine tokens.
    Parameters: 48 million with ResNet-50 (as published).

    Source: Zheng et al. 2023, arXiv:2307.12612; the rest is DINO, Zhang et al. 2023, arXiv:2203.03605.
    Differs: by default the fine score multiplies probabilities, values are refreshed, an image does not depend on what
    it is batched with, and size ranges of levels overlap; see ``Config.release``.

    >>> import torch
    >>> config = FocusDETRConfig(classes=3, backbone="small", widths=(16, 16), levels=2, dim=16, groups=4, heads=2,
    ...     ff_dim=16, encoder_layers=1, cascade=(1.0,), decoder_layers=1, queries=5)
    >>> model = FocusDETR(config)
    >>> model([torch.zeros(3, 32, 48), torch.zeros(3, 40, 32)]).boxes.shape
    torch.Size([2, 5, 4])
    """

    Config: ClassVar[type[FocusDETRConfig]] = FocusDETRConfig
    config: FocusDETRConfig

    def __init__(self, config: FocusDETRConfig, *, pretrained_backbone: bool = False) -> None:
        """Make a model with fresh weights.

        Args:
            config: sizes and switches.
            pretrained_backbone: whether timm fetches the backbone's ImageNet weights.
        """
        super().__init__()
        self.config = c = config
        self.backbone = make_backbone(c.backbone, c.widths, freeze_stem=c.freeze_stem, pretrained=pretrained_backbone)
        self.learning_rates = {"backbone.": c.backbone_lr}
        self.neck = Neck(self.backbone.channels, c.dim, c.levels, c.groups)
        extra = c.levels - len(self.backbone.strides)
        last = self.backbone.strides[-1]
        self.strides = (*self.backbone.strides, *(last * 2 ** (step + 1) for step in range(extra)))
        self.level_embedding = nn.Parameter(torch.randn(c.levels, c.dim))
        self.token_proj = nn.Linear(c.dim, c.dim)
        self.token_norm = nn.LayerNorm(c.dim)
        self.selector = ForegroundSelector(c.dim, c.levels, top_down=c.top_down) if c.fts == "score" else None
        self.encoder = Encoder(
            [
                EncoderLayer(c.dim, c.heads, c.levels, c.points, c.ff_dim, fine_tokens=c.fine_tokens, dropout=c.dropout)
                for _ in range(c.encoder_layers)
            ],
            refreshed=c.value == "refreshed",
        )
        self.queries = nn.Parameter(torch.randn(c.queries, c.dim))
        self.decoder = Decoder(c.decoder_layers, c.dim, c.heads, c.levels, c.points, c.ff_dim, dropout=c.dropout)
        # One of each decoder layer; the last one is of the proposals, and its classes choose the finest tokens.
        self.class_heads = nn.ModuleList(nn.Linear(c.dim, c.classes) for _ in range(c.decoder_layers + 1))
        self.box_heads = nn.ModuleList(MLP(c.dim, c.dim, c.dim, 4) for _ in range(c.decoder_layers + 1))
        self.label_embedding = nn.Embedding(c.classes, c.dim) if c.denoising else None
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        heads: Any
        for heads in self.class_heads:
            nn.init.constant_(heads.bias, PRIOR)
        for heads in self.box_heads:
            nn.init.normal_(heads.layers[-1].weight, std=SMALL)
            nn.init.zeros_(heads.layers[-1].bias)

    def forward(
        self,
        image: Tensor | Sequence[Tensor],
        sizes: Sequence[Size] | None = None,
        denoising: Denoising | None = None,
    ) -> Detected:
        """Detect.

        Args:
            image: pixels of 0 to 255: a tensor (B, 3, H, W), or a list of (3, H, W) of any sizes.
            sizes: height and width of each image in a tensor, whose rest is padding at its right and bottom; None:
                images fill it.
            denoising: queries made from the true boxes, in training.

        Raises:
            ShapeError: images are not (3, H, W), or sizes do not fit them.
        """
        groups = self._groups(image, sizes)
        fronts = [self._front(self.backbone(pixels), canvas, own) for pixels, canvas, own, _ in groups]
        order = [place for *_, places in groups for place in places]
        front = fronts[0] if len(fronts) == 1 else _merge(fronts, order)
        return self._detect(front, denoising)

    def from_maps(
        self, maps: Sequence[Tensor], canvas: Size, sizes: Sequence[Size], denoising: Denoising | None = None
    ) -> Detected:
        """Detect from a backbone's maps, (B, C, H, W) each, of images of ``sizes`` on one canvas."""
        return self._detect(self._front(maps, canvas, sizes), denoising)

    def _groups(
        self, image: Tensor | Sequence[Tensor], sizes: Sequence[Size] | None
    ) -> list[tuple[Tensor, Size, list[Size], list[int]]]:
        """Return canvases: pixels, canvas, sizes, and the places of the images in the batch."""
        images = [image] if isinstance(image, Tensor) and sizes is None else list(image)
        for each in images:
            want = 4 if each is image else 3
            if each.ndim != want or each.shape[-3] != 3:
                raise ShapeError(
                    f"An image has shape {tuple(each.shape)}, expected {'(B, 3, H, W)' if want == 4 else '(3, H, W)'}."
                )
        if isinstance(image, Tensor) and sizes is None:
            size = (image.shape[-2], image.shape[-1])
            pixels, canvas = self._canvas([image], size)
            return [(pixels[0], canvas, [size], [])]
        given = [(each.shape[-2], each.shape[-1]) for each in images] if sizes is None else list(sizes)
        if len(given) != len(images) or any(
            not (0 < h <= each.shape[-2] and 0 < w <= each.shape[-1])
            for (h, w), each in zip(given, images, strict=False)
        ):
            raise ShapeError(
                f"sizes {given} do not fit {len(images)} images of {[tuple(each.shape[-2:]) for each in images]}."
            )
        images = [each[:, :h, :w] for each, (h, w) in zip(images, given, strict=True)]
        if self.config.padding == "release":
            whole = (max(h for h, _ in given), max(w for _, w in given))
            if isinstance(image, Tensor):
                whole = (image.shape[-2], image.shape[-1])
            pixels, canvas = self._canvas(images, whole)
            return [(pixels, canvas, given, list(range(len(given))))]
        result = []
        for size in dict.fromkeys(given):
            places = [place for place, each in enumerate(given) if each == size]
            pixels, canvas = self._canvas([images[place] for place in places], size)
            result.append((pixels, canvas, [size] * len(places), places))
        return result

    def _canvas(self, images: Sequence[Tensor], size: Size) -> tuple[Tensor, Size]:
        """Return normalised images with zeros around them, and the size of their canvas."""
        step = self.backbone.multiple
        height, width = (-(-extent // step) * step for extent in size)
        dtype = self.level_embedding.dtype
        padded = []
        for each in images:
            pixels = normalise(each, PRETRAINED_MEAN, PRETRAINED_STD, dtype)
            padding = (0, width - pixels.shape[-1], 0, height - pixels.shape[-2])
            padded.append(nn.functional.pad(pixels, padding) if any(padding) else pixels)
        return torch.stack(padded), (height, width)

    def _front(self, maps: Sequence[Tensor], canvas: Size, sizes: Sequence[Size]) -> _Front:
        levels = self.neck(maps)
        shapes = [(x.shape[2], x.shape[3]) for x in levels]
        geometry = Geometry.of(canvas, sizes, shapes, levels[0].device, levels[0].dtype)
        flat = [x.flatten(2).transpose(1, 2) for x in levels]
        if self.selector is None:
            return _Front(geometry, flat, [])
        usable = geometry.anchors()[1]
        positions = self._positions(geometry)
        tokens = self._project(torch.cat(flat, 1) + positions, usable)
        return _Front(geometry, flat, self.selector(geometry.split(tokens), geometry.shapes))

    def _positions(self, geometry: Geometry) -> Tensor:
        c = self.config
        sines = geometry.positions(c.dim, c.temperature, c.position_offset)
        return torch.cat([x + level for x, level in zip(sines, self.level_embedding, strict=True)], 1)

    def _project(self, tokens: Tensor, usable: Tensor) -> Tensor:
        x: Tensor = self.token_norm(self.token_proj(tokens.masked_fill(~usable[..., None], 0.0)))
        return x

    def _detect(self, front: _Front, denoising: Denoising | None) -> Detected:
        geometry, tokens = front.geometry, torch.cat(front.maps, 1)
        mask = geometry.token_mask().expand(tokens.shape[:2])
        padding = mask if geometry.padded else None
        foreground = torch.cat(front.scores, 1) if front.scores else None
        encoded = self._encode(tokens, geometry, padding, foreground)
        proposals, queries, boxes, real = self._propose(encoded.memory, geometry)

        allowed = None if real is None else real[:, None, None]
        given = 0
        if denoising is not None and self.label_embedding is not None:
            given = denoising.labels.shape[1]
            queries = torch.cat([denoising.embed(self.label_embedding).to(queries.dtype), queries], 1)
            boxes = torch.cat([denoising.boxes.to(boxes.dtype), boxes], 1)
            exact = self.config.padding == "exact"
            allowed = denoising.mask(queries.shape[1] - given if real is None else real, exact=exact)
        decoded = self.decoder(
            queries,
            boxes,
            encoded.memory,
            geometry,
            self.box_heads[:-1],
            token_mask=padding,
            mask=allowed,
            scaled_positions=self.config.padding == "release",
        )
        layers = [
            Predicted(classes(state), (move(state) + logit(reference)).sigmoid())
            for classes, move, state, reference in zip(
                self.class_heads[:-1], self.box_heads[:-1], decoded.states, decoded.references, strict=True
            )
        ]
        matching = tuple(Predicted(each.logits[:, given:], each.boxes[:, given:]) for each in layers)
        denoised = tuple(Predicted(each.logits[:, :given], each.boxes[:, :given]) for each in layers if given)
        everyone = torch.ones(matching[-1].logits.shape[:2], dtype=torch.bool, device=tokens.device)
        return Detected(
            *matching[-1],
            everyone if real is None else real,
            matching,
            proposals,
            denoised,
            tokens.new_zeros(tokens.shape[:2]) if foreground is None else foreground,
            geometry.places(self.strides).expand(tokens.shape[0], -1, -1),
            mask,
            encoded.kept,
        )

    def _encode(self, tokens: Tensor, geometry: Geometry, padding: Tensor | None, foreground: Tensor | None) -> Encoded:
        c = self.config
        selections = None
        if c.fts != "none":
            scores = self._random_scores(tokens) if foreground is None else foreground.detach()
            if padding is not None:
                lowest = scores.min() if c.padding == "release" else -torch.inf
                scores = torch.where(padding, scores, lowest)
            plan = budgets(geometry, c.rho, c.cascade, by_batch=c.padding == "release")
            ranked = scores.topk(max(taken for taken, _ in plan), dim=1).indices
            selections = [Selection(ranked[:, :taken], self._within(taken, own, tokens.device)) for taken, own in plan]
        return self.encoder(
            tokens,
            self._positions(geometry).expand_as(tokens),
            geometry,
            token_mask=padding,
            selections=selections,
            foreground=foreground,
            fine_score=self._fine_score if c.fine_tokens else None,
        )

    def _within(self, taken: int, own: Sequence[int], device: torch.device) -> Tensor | None:
        if min(own) == taken:
            return None
        return torch.arange(taken, device=device) < torch.tensor(own, device=device)[:, None]

    def _random_scores(self, tokens: Tensor) -> Tensor:
        """Return other scores at each step of training, and the same ones for all images afterwards."""
        count = tokens.shape[1]
        if self.training:
            return torch.rand(tokens.shape[:2], device=tokens.device)
        fixed = torch.rand(count, generator=torch.Generator().manual_seed(count)).to(tokens.device)
        return fixed.expand(tokens.shape[0], -1)

    def _fine_score(self, tokens: Tensor, foreground: Tensor | None) -> Tensor:
        kind = self.config.fine_score
        category = self.class_heads[-1](tokens).amax(-1).detach()
        if foreground is None or kind == "category":
            return category
        foreground = foreground.detach()
        if kind == "foreground":
            return foreground
        return category * foreground if kind == "release" else category.sigmoid() * foreground.sigmoid()

    def _propose(self, memory: Tensor, geometry: Geometry) -> tuple[Predicted, Tensor, Tensor, Tensor | None]:
        """Return proposals, queries, their boxes, and which of them are real, if any is not."""
        anchors, usable = geometry.anchors()
        anchors = anchors.expand(memory.shape[0], -1, -1)
        x = self._project(memory, usable)
        logits = self.class_heads[-1](x)
        best = logits.amax(-1)
        fewest = min(geometry.counts)
        if self.config.padding == "exact" and geometry.padded:
            best = best.masked_fill(~geometry.token_mask(), -torch.inf)
        count = min(self.config.queries, geometry.tokens)
        index = best.topk(count, dim=1).indices
        x = take(x, index)
        boxes = (self.box_heads[-1](x) + take(anchors, index)).sigmoid()
        queries = self.queries[:count].expand(memory.shape[0], -1, -1)
        real = None
        if self.config.padding == "exact" and fewest < count:
            real = self._within(count, geometry.counts, memory.device)
        return Predicted(take(logits, index), boxes), queries, boxes.detach(), real


def _merge(fronts: Sequence[_Front], order: Sequence[int]) -> _Front:
    """Put images of several sizes on common maps, in the order of the batch."""
    geometry = Geometry.join([front.geometry for front in fronts], order)
    back = torch.tensor(order, device=geometry.device).argsort()

    def placed(parts: Sequence[Tensor], level: int) -> Tensor:
        height, width = geometry.shapes[level]
        maps = []
        for front, part in zip(fronts, parts, strict=True):
            h, w = front.geometry.shapes[level]
            x = part.unflatten(1, (h, w))
            maps.append(
                nn.functional.pad(x, (0, 0, 0, width - w, 0, height - h))
                if x.ndim == 4
                else nn.functional.pad(x, (0, width - w, 0, height - h))
            )
        return torch.cat(maps)[back].flatten(1, 2)

    levels = range(len(geometry.shapes))
    maps = [placed([front.maps[level] for front in fronts], level) for level in levels]
    scores = [placed([front.scores[level] for front in fronts], level) for level in levels if fronts[0].scores]
    return _Front(geometry, maps, scores)


@dataclass(frozen=True)
class DINOConfig(FocusDETRConfig):
    """Focus-DETR with all its switches off."""

    fts: Literal["score", "random", "none"] = "none"
    fine_tokens: int = 0


class DINO(FocusDETR):
    """The plain detector: every encoder layer updates every token.

    Source: Zhang et al. 2023, arXiv:2203.03605.
    """

    Config: ClassVar[type[FocusDETRConfig]] = DINOConfig
