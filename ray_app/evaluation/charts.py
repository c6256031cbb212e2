"""Small charts as inline SVG that follow the page: its colours in light and dark, and its font.

matplotlib draws with placeholder colours, which become CSS variables; so one drawing serves both themes.
`as_file` gives a drawing variables of its own, for where no page has any.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from ray_app.evaluation.metrics import Curve, Number, ReliabilityPoint, Stage

INK, MUTED, RULE, ACCENT, FILL = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", FILL: "--fill"}
_THEMES = (
    ":root { --ink: #23221f; --muted: #6a675f; --rule: #dcd9d0; --accent: #2a6a59; --fill: #c9c5b9;"
    " --sans: system-ui, sans-serif }"
    " @media (prefers-color-scheme: dark) { :root { --ink: #e9e6de; --muted: #a19d92; --rule: #383630;"
    " --accent: #86c5ae; --fill: #55524a } }"
)
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rationale",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def bars(title: str, numbers: dict[str, Number], champion: str, base: float) -> str:
    """One metric of all scorers: horizontal bars from `base`, with 95 % intervals."""
    shown = [(name, number) for name, number in numbers.items() if number.value is not None]
    figure, axes = _axes(0.9 + 0.34 * len(shown))
    for row, (name, number) in enumerate(reversed(shown)):
        value = number.value or 0.0
        colour = ACCENT if name == champion else FILL
        axes.barh(row, value - base, left=base, height=0.58, color=colour, linewidth=0)
        if number.low is not None and number.high is not None:
            axes.plot([number.low, number.high], [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
        at_right = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
        axes.annotate(_short(value), (1.0, row), **at_right, fontsize=10, color=INK)
    edges = [edge for _, n in shown for edge in (n.low, n.high, n.value) if edge is not None] + [base]
    span = (max(edges) - min(edges)) or 0.1
    # Room on the right for the numbers.
    axes.set_xlim(min(edges) - 0.03 * span, max(edges) + 0.24 * span)
    axes.set_yticks(range(len(shown)), [name for name, _ in reversed(shown)])
    axes.axvline(base, color=MUTED, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return _svg(figure, title)


def reliability(points: Sequence[ReliabilityPoint]) -> str:
    """Observed share of positives against predicted probability, one dot per equal-mass bin."""
    figure, axes = _axes(3.4)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot(
        [point.p for point in points],
        [point.observed for point in points],
        color=ACCENT,
        marker="o",
        markersize=4.5,
        linewidth=1.2,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted P(yes)")
    axes.set_aspect("equal")
    return _svg(figure, "Observed share of likes against predicted P(yes)")


def curve(title: str, curves: Sequence[Curve], value: str) -> str:
    """`loss` or `valid_auc` against training tokens, one line per phase; the first is the accent."""
    figure, axes = _axes(2.6)
    drawn = [
        (one.name, [(p.tokens, getattr(p, value)) for p in one.points if getattr(p, value) is not None])
        for one in curves
    ]
    styles = [(ACCENT, "-"), (INK, "-"), (MUTED, "-"), (ACCENT, "--"), (INK, "--"), (MUTED, "--")]
    for number, (name, points) in enumerate((name, points) for name, points in drawn if points):
        colour, line = styles[number % len(styles)]
        x, y = zip(*points, strict=True)
        marker = "o" if len(points) < 25 else ""
        axes.plot(x, y, color=colour, linestyle=line, linewidth=1.3, marker=marker, markersize=3, label=name)
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if len([points for _, points in drawn if points]) > 1:
        axes.legend(frameon=False, fontsize=9, handlelength=1.6, labelcolor=INK)
    return _svg(figure, title)


def stages(rows: Sequence[Stage]) -> str:
    """Wall seconds (bar) and CPU seconds (tick) of each stage."""
    figure, axes = _axes(0.9 + 0.34 * len(rows))
    for row, stage in enumerate(reversed(rows)):
        axes.barh(row, stage.seconds, height=0.58, color=FILL, linewidth=0)
        axes.plot([stage.cpu_seconds] * 2, [row - 0.36, row + 0.36], color=ACCENT, linewidth=2)
    axes.set_yticks(range(len(rows)), [stage.stage for stage in reversed(rows)])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("seconds")
    axes.spines["left"].set_visible(False)
    return _svg(figure, "Wall seconds (bar) and CPU seconds (mark) of each stage")


def as_file(svg: str) -> str:
    """An inline drawing as an SVG file, in the colours of the viewer's theme."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening, rest = svg.replace("<svg", f"<svg {names}", 1).split(">", 1)
    return f"{opening}><style>{_THEMES}</style>{rest}"


def _axes(height: float) -> tuple[Figure, Axes]:
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure, title: str) -> str:
    """The drawing as one `<svg>` element: themed, without ids that another drawing may have too."""
    buffer = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font(?:-family)?: ?(?:(\d[\d.]*px) )?[^;\"]*(?:sans-serif|DejaVu)[^;\"]*", _font, svg)
    used = set(re.findall(r"#([A-Za-z_][\w.-]*)", svg))
    prefix = "c" + hashlib.sha256(f"{title}{svg}".encode()).hexdigest()[:8]
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"#([A-Za-z_][\w.-]*)", lambda m: f"#{prefix}{m[1]}", svg)
    label = title.replace("&", "and").replace("<", "").replace('"', "'")
    opening = rf'<svg role="img" aria-label="{label}" viewBox="\1">'
    return re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', opening, svg, count=1)


def _font(match: re.Match[str]) -> str:
    return f"font: {match[1]} var(--sans)" if match[1] else "font-family: var(--sans)"


def _short(value: float) -> str:
    """`.783`: three decimals without the leading zero, as the field prints shares."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
