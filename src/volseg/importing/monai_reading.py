"""How a MONAI bundle reads a scan, and what becomes of its network's output: its transforms as an `Origin` has them.

Transforms that change voxels and are none of those below are refused by name: a mask of another input would be wrong
without a word. MONAI's arrays run along the patient's x, y, z where ours run along z, y, x (Cardoso et al.,
arXiv:2211.02701; https://docs.monai.io/en/stable/transforms.html).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from volseg.errors import ConfigError
from volseg.geometry import Triple
from volseg.importing.monai_config import BundleConfig, listed, target_of
from volseg.models.origin import Back, Order
from volseg.volumes.intensity import ChannelScheme, Method, Normalization

_NOTHING = (
    "LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "ToTensor", "CastToType", "SelectItems",
    "DeleteItems", "Identity", "ToDevice", "SaveImage", "CopyItems", "FromMetaTensor", "ToMetaTensor",
)  # fmt: skip
"""Transforms that leave voxels as they are."""
_CANONICAL = "RAS"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What transforms make of a scan before the network.

    order    of the axes, `Origin.order`
    pixdim   mm along the patient's x, y, z at which the network sees it; None: its own
    late     whether intensities are changed after resampling
    method   by which each channel is normalised by its own values; with `fixed`, it is none of those
    fixed    numbers of the normalisation that hold for every scan
    above    the scan is cropped to what lies above this in its values before `fixed`; None: it is not
    span     what the range of a channel becomes, where the method takes it
    """

    order: Order = "stored"
    pixdim: tuple[float, float, float] | None = None
    late: bool = True
    method: Method | None = None
    fixed: Normalization | None = None
    above: float | None = None
    span: tuple[float, float] = (0.0, 1.0)

    def schemes(self, names: Sequence[str]) -> tuple[ChannelScheme, ...]:
        """Of the channels of these names."""
        fixed = self.fixed if self.fixed or self.method else Normalization(-math.inf, math.inf, 0.0, 1.0)
        return tuple(ChannelScheme(name, fixed, method=self.method or "zscore", span=self.span) for name in names)


@dataclass
class _Reader:
    """Takes in one transform after another; `channels` is the number of the image's."""

    where: str
    channels: int
    roi: Triple | None
    reading: Reading = field(default_factory=Reading)
    changed: bool = False  # whether intensities are

    def take(self, transform: Mapping[str, Any]) -> None:
        name = target_of(transform).removesuffix("d")
        step = self._STEPS.get(name)
        if step is None:
            raise ConfigError(
                f"{self.where}: its preprocessing has {target_of(transform)}, which changes voxels and is not known "
                "here; export the network alone with torch.export (.pt2), and describe in model.json how scans are read"
            )
        step(self, transform)

    def _orientation(self, transform: Mapping[str, Any]) -> None:
        codes = transform.get("axcodes")
        if not transform.get("as_closest_canonical") and codes != _CANONICAL:
            self._refuse(transform, f"axcodes = {codes!r}", f"only {_CANONICAL} is known")
        if self.reading.pixdim is not None or self.changed:
            self._refuse(transform, "it comes after Spacingd or an intensity", "put it first")
        self.reading = replace(self.reading, order="canonical")

    def _spacing(self, transform: Mapping[str, Any]) -> None:
        pixdim = [float(side) for side in listed(transform.get("pixdim"))]
        pixdim += pixdim[-1:] * (3 - len(pixdim))
        mode = listed(transform.get("mode", "bilinear"))[0]
        odd = [key for key in ("diagonal", "scale_extent", "min_pixdim", "max_pixdim") if transform.get(key)]
        if odd or mode not in ("bilinear", 1) or len(pixdim) != 3 or not all(0 < side < math.inf for side in pixdim):
            what = f"{odd[0]} = {transform[odd[0]]!r}" if odd else f"pixdim = {pixdim}, mode = {mode!r}"
            self._refuse(transform, what, "three spacings above 0, mode bilinear and nothing else are known")
        if self.reading.pixdim is not None or self.reading.above is not None:
            self._refuse(transform, "it comes after another, or after CropForegroundd", "put it first")
        x, y, z = pixdim
        self.reading = replace(self.reading, pixdim=(x, y, z), late=not self.changed)

    def _scale_intensity_range(self, transform: Mapping[str, Any]) -> None:
        a, b = (float(transform[key]) for key in ("a_min", "a_max"))
        low, high = transform.get("b_min"), transform.get("b_max")
        clip = _flag(transform.get("clip", False))
        if a == b or (clip and (low is None or high is None)) or (low is not None and low == high):
            self._refuse(transform, f"a {a:g} to {b:g}, b {low} to {high}", "ranges of some width are known")
        low, high = (0.0, 1.0) if low is None or high is None else (float(low), float(high))
        std = (b - a) / (high - low)
        ends = (min(a, b), max(a, b)) if clip else (-math.inf, math.inf)
        self._become(transform, fixed=Normalization(*ends, a - low * std, std))

    def _normalize_intensity(self, transform: Mapping[str, Any]) -> None:
        own, divisor = transform.get("subtrahend"), transform.get("divisor")
        nonzero, apart = (_flag(transform.get(key, False)) for key in ("nonzero", "channel_wise"))
        if own is not None and divisor is not None and not nonzero:
            sub, div = ({float(value) for value in listed(values)} for values in (own, divisor))
            if len(sub) == len(div) == 1:
                self._become(transform, fixed=Normalization(-math.inf, math.inf, sub.pop(), div.pop() or 1.0))
                return
        if own is not None or divisor is not None:
            self._refuse(transform, f"subtrahend = {own}, divisor = {divisor}", "one number of each is known")
        if not apart and self.channels > 1:
            self._refuse(transform, "channel_wise is off", "all channels together are not known: turn it on")
        self._become(transform, method="zscore_nonzero" if nonzero else "zscore")

    def _scale_intensity(self, transform: Mapping[str, Any]) -> None:
        low, high = transform.get("minv", 0.0), transform.get("maxv", 1.0)
        if low is None or high is None or float(low) >= float(high) or (
            self.channels > 1 and not _flag(transform.get("channel_wise", False))
        ):  # fmt: skip
            self._refuse(transform, f"minv = {low}, maxv = {high}", "a range, of each channel for itself, is known")
        self._become(transform, method="rescale", span=(float(low), float(high)))

    def _crop_foreground(self, transform: Mapping[str, Any]) -> None:
        plain = {"margin": 0, "k_divisible": 1, "channel_indices": None, "select_fn": None}
        odd = [
            f"{key} = {transform[key]}"
            for key, usual in plain.items()
            if any(part != usual for part in listed(transform.get(key, usual)))
        ]
        if odd or transform.get("source_key", "image") not in listed(transform.get("keys", "image")):
            self._refuse(transform, ", ".join(odd) or "source_key is not the image", "what is above 0 is known")
        rule = self.reading.fixed
        if (self.changed and (rule is None or rule.std <= 0)) or self.reading.above is not None:
            self._refuse(transform, "it comes after a normalisation by a scan's own values", "put it before that")
        level = 0.0
        if rule is not None and self.reading.late:  # what is above 0 once it is normalised
            if rule.mean < rule.low:  # all is above 0
                return
            level = rule.mean
        self.reading = replace(self.reading, above=level)

    def _spatial_pad(self, transform: Mapping[str, Any]) -> None:
        sides = list(listed(transform.get("spatial_size")))
        plain = transform.get("mode", "constant") == "constant" and transform.get("method", "symmetric") == "symmetric"
        sides = sides * 3 if len(sides) == 1 else sides
        if self.roi is None or not plain or any(side > own for side, own in zip(sides, self.roi, strict=True)):
            self._refuse(transform, f"spatial_size = {sides}", "zeros around a scan up to the windows' size are known")

    _STEPS: ClassVar[Mapping[str, Callable[[_Reader, Mapping[str, Any]], None]]] = {
        "Orientation": _orientation,
        "Spacing": _spacing,
        "ScaleIntensityRange": _scale_intensity_range,
        "NormalizeIntensity": _normalize_intensity,
        "ScaleIntensity": _scale_intensity,
        "SpatialPad": _spatial_pad,
        "CropForeground": _crop_foreground,
    }

    def _become(
        self, transform: Mapping[str, Any], *, method: Method | None = None, fixed: Normalization | None = None,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:  # fmt: skip
        """What a normalisation after those before it comes to."""
        before = self.reading
        clipped = before.fixed is not None and math.isfinite(before.fixed.low)
        if self.changed and method == "rescale" and before.method == "zscore_nonzero":
            method = "rescale_nonzero"
        elif self.changed and (clipped or fixed is not None or method not in ("zscore", "rescale") or
                               before.method in ("zscore_nonzero", "rescale_nonzero")):  # fmt: skip
            self._refuse(transform, "it comes after another normalisation", "these two together are not known")
        self.changed = True
        self.reading = replace(before, method=method, fixed=fixed, span=span)

    def _refuse(self, transform: Mapping[str, Any], what: str, known: str) -> None:
        raise ConfigError(
            f"{self.where}: {target_of(transform)} of its preprocessing cannot be done here: {what}; {known}. "
            "Otherwise export the network alone with torch.export (.pt2), and describe in model.json how scans are read"
        )


def reading_of(config: BundleConfig, channels: int, roi: Triple | None) -> Reading:
    """How a bundle reads a scan of so many channels, whose windows have the sides `roi`.

    Raises ConfigError, by name, for what cannot be done here.
    """
    reader = _Reader(config.where, channels, roi)
    transforms = _transforms(config, "preprocessing")
    if transforms is None:
        raise ConfigError(
            f"{config.where}: has no preprocessing#transforms, so that nobody knows what its network sees"
        )
    for number, transform in enumerate(transforms):
        name = f"preprocessing#transforms#{number}"
        try:
            keys = config.resolved(transform.get("keys", "image"), f"{name}#keys")
            if target_of(transform).removesuffix("d") not in _NOTHING and not _is_other(keys):
                reader.take(config.resolved(transform, name))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{config.where}: {target_of(transform) or transform!r} is malformed ({error})") from None
    return reader.reading


@dataclass(frozen=True, kw_only=True)
class Output:
    """What becomes of a network's output.

    regions  whether its channels overlap, each with a probability of its own
    back     what is brought back onto the scan's grid
    notes    what is not done here, in sentences
    """

    regions: bool
    back: Back
    notes: tuple[str, ...] = ()


def output_of(config: BundleConfig) -> Output:
    """What a bundle's postprocessing makes of the network's output. What it does to the mask besides is only said."""
    regions, notes = False, list[str]()
    back: Back = "logits"
    made: Back = "logits"
    for transform in _transforms(config, "postprocessing") or ():
        name = target_of(transform).removesuffix("d")
        if name == "Activations":
            regions, made = regions or _flag(transform.get("sigmoid", False)), "probabilities"
        elif name == "AsDiscrete":
            regions, made = regions or transform.get("threshold") is not None, "labels"
        elif name == "Invert":
            back = "labels" if _flag(transform.get("nearest_interp", True)) else made
        elif name not in _NOTHING:
            notes.append(
                f"{config.where}: {target_of(transform)} of its postprocessing is not done; --keep-largest and "
                "--min-volume clean masks here"
            )
    return Output(regions=regions, back=back, notes=tuple(notes))


def _transforms(config: BundleConfig, what: str) -> list[Any] | None:
    """The transforms of `what` as they are written; a training's configuration has them under `validate`."""
    for path in (what, f"validate#{what}"):
        listing = config.table(path).get("transforms")
        followed = config.followed(listing, f"{path}#transforms")
        if isinstance(followed, list):
            return followed
    return None


def _is_other(keys: Any) -> bool:
    """Whether a transform of these keys is of something else than the image, such as its label."""
    return all(key in ("label", "mask", "pred") for key in listed(keys))


def _flag(value: Any) -> bool:
    return value is True or str(value).lower() == "true"
