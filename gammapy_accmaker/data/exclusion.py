"""Which sky positions are left out of a fit: regions, region files and mask maps made into one question."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.maps import Map
from regions import CircleSkyRegion, CompoundSkyRegion, Regions, SkyRegion

from gammapy_accmaker.camera.track import vectors_to_lonlat
from gammapy_accmaker.data.exclusion_data import KINDS, MaskData, mask_to_data, region_from_text, region_to_text
from gammapy_accmaker.data.exclusion_parts import make_part, separation
from gammapy_accmaker.data.region_files import read_regions
from gammapy_accmaker.errors import InputError

__all__ = ["Exclusion"]


@dataclass(frozen=True)
class _Excluded:
    """A region or mask as data, its margin in deg, the name of the file it came from, and the part of the sky it makes."""

    data: str | MaskData
    margin: float
    origin: str
    part: object

    @classmethod
    def of(cls, item, margin: float, origin: str) -> _Excluded:
        data = mask_to_data(item) if isinstance(item, Map) else region_to_text(item)
        return cls(data, margin, origin, make_part(data, margin))

    @property
    def key(self):
        return self.data, self.margin


class Exclusion(Sequence):
    """Sky positions that are left out of a fit; a sequence of the sky regions and mask maps that it is made of.

    It holds them as data: no file is read again, and `to_arrays` stores all. Wherever an exclusion is taken, so is an
    `Exclusion`, which keeps the margins that it was made with.

    Parameters
    ----------
    exclusion : `~regions.SkyRegion`, `~regions.Regions`, str, `~pathlib.Path`, `~gammapy.maps.Map`, `Exclusion` or list of these
        Sky regions of any kind, region files (ds9, crtf, fits), masks that are False where excluded. What comes twice
        counts once.
    margin : `~astropy.units.Quantity`
        Everything closer than this to a region is excluded too. A point or a line needs one to exclude anything.
    origin : str
        Name of the file that the regions or the mask came from, to be told with them; that of a region file is known.
    """

    def __init__(self, exclusion=None, margin: u.Quantity = 0 * u.deg, origin: str = ""):
        margin = u.Quantity(margin).to_value("deg")
        if not margin >= 0:
            raise InputError(f"exclusion margin: got {margin} deg, but a margin is >= 0 deg")
        self._set(
            item if isinstance(item, _Excluded) else _Excluded.of(item, float(margin), named)
            for item, named in _flatten(exclusion, origin)
        )

    def _set(self, items):
        self._items = tuple({item.key: item for item in items}.values())
        self._centers = np.array([item.part.center for item in self._items]).reshape(-1, 3)
        self._radii = np.array([item.part.radius for item in self._items])
        return self

    def __len__(self):
        return len(self._items)

    def __getitem__(self, number: int) -> SkyRegion | Map:
        data = self._items[number].data
        return data.to_map() if isinstance(data, MaskData) else region_from_text(data)

    @property
    def margins(self) -> u.Quantity:
        """Margin around each of the regions and masks."""
        return [item.margin for item in self._items] * u.deg

    @property
    def is_empty(self) -> bool:
        """Whether no position can be excluded, as without regions, or with points alone that have no margin."""
        return not np.any(self._radii > 0)

    def near(self, center: np.ndarray, radius: float) -> Exclusion:
        """The part of the exclusion that can touch a circle around an ICRS unit vector (radius in deg)."""
        near = separation(self._centers, center) < radius + self._radii
        return Exclusion()._set(self._items[k] for k in np.flatnonzero(near))

    def with_regions(self, regions) -> Exclusion:
        """This exclusion and more: anything that the class takes, without a margin."""
        return Exclusion()._set((*self._items, *Exclusion(regions)._items))

    def with_half_sky(self, pole: np.ndarray) -> Exclusion:
        """This exclusion and the half of the sky around an ICRS unit vector."""
        lon, lat = vectors_to_lonlat(pole)
        return self.with_regions(CircleSkyRegion(SkyCoord(lon * u.rad, lat * u.rad), 90 * u.deg))

    def contains(self, xyz: np.ndarray) -> np.ndarray:
        """Whether each ICRS unit vector, shape (n, 3), is excluded."""
        excluded = np.zeros(len(xyz), dtype=bool)
        for item in self._items:
            excluded |= item.part.contains(xyz)
        return excluded

    def in_brief(self) -> str:
        """How many regions and masks it has, in words."""
        n_mask = sum(isinstance(item.data, MaskData) for item in self._items)
        counted = {"sky region": len(self) - n_mask, "mask": n_mask}
        return " and ".join(f"{n} {word}{'s' if n > 1 else ''}" for word, n in counted.items() if n) or "nothing"

    def lines(self) -> list[str]:
        """What each of the regions and masks is, in words."""
        return [_line(item) for item in self._items]

    def __str__(self):
        return "\n".join(self.lines()) if len(self) else "nothing"

    def to_arrays(self) -> tuple[str, dict[str, np.ndarray]]:
        """Serial form, exact: text, and the pixels of the masks as bytes."""
        found, arrays = [], {}
        for item in self._items:
            entry = {"margin": item.margin, "origin": item.origin}
            if isinstance(item.data, MaskData):
                name = f"mask {len(arrays)}"
                arrays[name] = np.frombuffer(item.data.content, dtype=np.uint8)
                entry |= {"mask": name, "header": item.data.header, "shape": item.data.shape}
            else:
                entry["region"] = json.loads(item.data)
            found.append(entry)
        return json.dumps(found), arrays

    @classmethod
    def from_arrays(cls, text: str, arrays: dict[str, np.ndarray]) -> Exclusion:
        """The inverse of `to_arrays`.

        Raises
        ------
        InputError
            Where a part is missing or does not fit.
        """
        try:
            items = []
            for entry in json.loads(text):
                if "mask" in entry:
                    shape = tuple(int(n) for n in entry["shape"])
                    data = MaskData(str(entry["header"]), shape, arrays[entry["mask"]].astype(np.uint8).tobytes())
                else:
                    data = region_to_text(region_from_text(json.dumps(entry["region"])))
                margin = float(entry["margin"])
                if not 0 <= margin < 360:
                    raise ValueError(f"margin of {margin} deg")
                items.append(_Excluded(data, margin, str(entry["origin"]), make_part(data, margin)))
            return cls()._set(items)
        except Exception as error:  # whatever damaged numbers and headers lead to in other packages
            raise InputError(f"exclusion: a region or mask cannot be read ({type(error).__name__}: {error})") from error


def _flatten(exclusion, origin):
    """The regions and masks, each with the name of its file."""
    if exclusion is None:
        return
    if isinstance(exclusion, Exclusion):
        yield from ((item, item.origin) for item in exclusion._items)
    elif isinstance(exclusion, (str, Path)):
        yield from ((region, Path(exclusion).name) for region in read_regions(exclusion))
    elif isinstance(exclusion, CompoundSkyRegion) and exclusion.operator is operator.or_:
        yield from _flatten((exclusion.region1, exclusion.region2), origin)
    elif isinstance(exclusion, (SkyRegion, Map)):
        yield exclusion, origin
    elif isinstance(exclusion, (Regions, Iterable)) and not isinstance(exclusion, SkyCoord | u.Quantity | bytes | dict):
        for item in exclusion:
            yield from _flatten(item, origin)
    else:
        raise InputError(
            f"exclusion: got {type(exclusion).__name__}, but sky regions, a region file, a mask map or a list of "
            "these are needed; convert a pixel region with `region.to_sky(wcs)`"
        )


def _line(item):
    more = f", and {item.margin:.4g} deg around it" if item.margin else ""
    more += f" ({item.origin})" if item.origin else ""
    if isinstance(item.data, MaskData):
        part = getattr(item.part, "part", item.part)  # without the margin
        shape = item.data.shape
        size = "HEALPix mask" if len(shape) == 1 else f"mask of {shape[1]} x {shape[0]} pixels"
        if part.radius < 0:
            return f"{size}, nothing excluded{more}"
        excluded = f"{shape[0]} pixels" if len(shape) == 1 else f"{100 * (1 - part.mask.data.mean()):.3g} % of them"
        ra, dec = np.degrees(vectors_to_lonlat(part.center))
        where = f"within {part.radius:.4g} deg around RA {ra % 360:.3f}, Dec {dec:+.3f} deg"
        return f"{size}, {excluded} excluded, {where}{more}"
    return f"{_in_words(json.loads(item.data))}{more}"


def _in_words(data):
    if data["kind"] == "compound":
        first, second = (f"({_in_words(part)})" for part in data["regions"])
        return f"{first} {data['operator']} {second}"
    words = []
    for name, value in data.items():
        if isinstance(value, dict):
            lon, lat = np.ravel(value["lon"]), np.ravel(value["lat"])
            places = ", ".join(f"{a:.3f} {b:+.3f}" for a, b in zip(lon[:4], lat[:4], strict=True))
            more = f" and {len(lon) - 4} more" if len(lon) > 4 else ""
            words.append(f"{name} {value['frame']} {places}{more}")
        elif isinstance(value, float):
            words.append(f"{name.replace('_', ' ')} {value:.4g} deg")
    label = next((f" {value!r}" for key, value in data.items() if key in ("text", "label", "comment")), "")
    return f"{KINDS[data['kind']][0].__name__}{label}: {', '.join(words)}"
