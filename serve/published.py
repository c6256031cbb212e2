"""What the service tells about the run that it serves: versions, stages, metrics, plots, the whole report.

All of it comes from `report/` of the bundle, is read once and handed out by name from memory: nothing that a
request says becomes a path. A bundle without a report still tells its versions, and so does one whose report
was written by another version of this program: what answers does not hang on what was measured.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import HTMLResponse, Response

from ray_app.artifacts import Folder
from ray_app.bundle import REPORT
from ray_app.errors import NotFoundError
from ray_app.evaluation.metrics import (
    CalibrationSection,
    DataSection,
    Metrics,
    Plot,
    RunSection,
    Stage,
    TableSection,
)

log = logging.getLogger(__name__)
HEADERS = {
    # The report brings its own styles, and no script; the same for a plot that is opened by itself.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Measured(BaseModel):
    """What was measured of a run; see docs/metrics.md. A section that is null was not."""

    run: RunSection
    champion: str
    """The scorer that is served; the others are its rivals on the same rows."""
    data: DataSection | None
    exposed: TableSection | None
    catalogue: TableSection | None
    calibration: CalibrationSection | None
    stages: list[Stage] | None
    plots: list[Plot]


class ServedRun(BaseModel):
    """The bundle that is served, and the run that it comes from."""

    versions: dict[str, str]
    cut: int
    """Last timestamp that the bundle has seen, epoch seconds."""
    report: Measured | None
    """None: the bundle was published without, or by a version whose report this one does not read."""


class Svg(Response):
    media_type = "image/svg+xml"


@dataclass(frozen=True)
class Published:
    """The files of one bundle's report, read."""

    run: ServedRun
    page: bytes | None
    plots: dict[str, bytes]

    @classmethod
    def read(cls, bundle: Folder, facts: dict[str, Any], versions: dict[str, str]) -> Published:
        """From the bundle's folder; facts: its manifest."""
        folder = bundle.folder(REPORT)
        if not folder.exists("metrics.json"):
            return cls(ServedRun(versions=versions, cut=facts["cut"], report=None), None, {})
        plots = [Plot.model_validate(one) for one in folder.read_json("plots.json")]
        return cls(
            ServedRun(versions=versions, cut=facts["cut"], report=_measured(folder, plots)),
            folder.read("report.html"),
            {plot.name: folder.read(plot.name) for plot in plots},
        )

    def report(self) -> Response:
        """Raises NotFoundError."""
        if self.page is None:
            raise NotFoundError("this bundle was published without a report: publish the run again")
        return HTMLResponse(self.page, headers=HEADERS)

    def plot(self, name: str) -> Response:
        """Raises NotFoundError."""
        if name not in self.plots:
            raise NotFoundError(f"plot {name!r} does not exist: ask GET /v1/run for names")
        return Svg(self.plots[name], headers=HEADERS)


def _measured(folder: Folder, plots: list[Plot]) -> Measured | None:
    """None, with a warning, where the report has not the form of this version."""
    try:
        metrics = Metrics.model_validate(folder.read_json("metrics.json"))
    except ValidationError as error:
        log.warning(
            "%s is of another version, publish again to have it shown: %s", folder.path("metrics.json"), error
        )
        return None
    told = {name: getattr(metrics, name) for name in Measured.model_fields if name != "plots"}
    return Measured(**told, plots=plots)
