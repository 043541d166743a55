"""A background IRF of anyone's -> a model: units, order of the axes and alignment are respected."""

from __future__ import annotations

import logging

import astropy.units as u
import numpy as np
from gammapy.irf import Background2D, Background3D, FoVAlignment

from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.models.pooled import ZenithInterpolated
from gammapy_accmaker.models.tabulated import TabulatedModel

log = logging.getLogger(__name__)


def model_from_irfs(irf, fov_alignment: str | None) -> tuple[RateModel, str]:
    """Model of an IRF, or of a dictionary of them by zenith angle, and its alignment;
    see `AcceptanceModel.from_irf`."""
    if not isinstance(irf, dict):
        return _table_from_irf(irf, fov_alignment)
    if not irf:
        raise InputError("irf: got an empty dictionary, but at least one IRF by zenith angle is needed")
    tables = {}
    for zenith, one in irf.items():
        try:
            angle = (
                u.Quantity(zenith, "deg").value if u.Quantity(zenith).unit == "" else u.Quantity(zenith).to_value("deg")
            )
        except (TypeError, u.UnitConversionError):
            angle = np.nan
        if not (np.ndim(angle) == 0 and 0 <= angle < 90):
            raise InputError(f"irf: got the zenith angle {zenith}, but one of 0 to 90 deg is needed")
        tables[float(np.cos(np.radians(angle)))] = _table_from_irf(one, fov_alignment)
    kinds = {(table.is_radial, alignment) for table, alignment in tables.values()}
    if len({radial for radial, _ in kinds}) > 1 or (len(kinds) > 1 and not all(radial for radial, _ in kinds)):
        raise InputError(f"irf: got IRFs of different kinds or alignments, {sorted(kinds)}, but they must be alike")
    cos_zenith = sorted(tables)
    models, alignment = [tables[z][0] for z in cos_zenith], tables[cos_zenith[0]][1]
    if len(models) == 1:
        return models[0], alignment
    return ZenithInterpolated(np.array(cos_zenith), models, False), alignment


def _table_from_irf(irf, fov_alignment: str | None = None) -> tuple[TabulatedModel, str]:
    """Table and alignment ("altaz" or "radec") of one IRF; a reversed longitude is turned round."""
    if not isinstance(irf, (Background2D, Background3D)):
        raise InputError(
            f"irf: got {type(irf).__name__}, but a Background2D or Background3D is needed; "
            "read one with Background3D.read"
        )
    names = ["energy", "offset"] if isinstance(irf, Background2D) else ["energy", "fov_lon", "fov_lat"]
    try:
        values = irf.quantity.to_value("s-1 MeV-1 sr-1").astype(float)
        edges = [irf.axes[n].edges.to_value("TeV" if n == "energy" else "deg").astype(float) for n in names]
    except u.UnitConversionError as error:
        raise InputError(
            f"irf: its units cannot be used ({error}); a rate in s-1 MeV-1 sr-1 over TeV and deg is needed"
        ) from error
    unusable = ~np.isfinite(values) | (values < 0)
    if unusable.any():
        log.warning(f"irf: {unusable.sum()} of its {values.size} rates are negative or not finite and count as empty")
        values = np.where(unusable, 0.0, values)
    alignment = FoVAlignment((fov_alignment or irf.fov_alignment).upper())
    if fov_alignment is None and len(names) == 3 and irf.meta and "FOVALIGN" not in irf.meta:
        log.warning(
            f"irf: its header has no FOVALIGN; it is taken as {alignment.value}, "
            "as gammapy does: pass fov_alignment if it is not"
        )
    if alignment == FoVAlignment.REVERSE_LON_RADEC and len(names) == 3:
        values, edges[1] = values[:, ::-1], -edges[1][::-1]
    frame = "altaz" if alignment == FoVAlignment.ALTAZ else "radec"
    return TabulatedModel(edges[0], FovBins(tuple(edges[1:])), values.copy()), frame
