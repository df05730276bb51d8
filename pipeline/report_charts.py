"""Charts of the report: scores with intervals, and small multiples of what was logged along each stage."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import plotly.graph_objects as go
import plotly.io

from pipeline.report_data import StageFiles
from pipeline.report_html import Html, details, fill, join, number, row, table, text
from pipeline.report_style import ACCENT, COLOURS, INK, MUTED, RULE
from viewing.bands import Band, trailing_mean

FONT = {"family": "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif", "size": 12, "color": INK}
WINDOW_SHARE = 0.05  # the bold line averages this share of the steps around each step

_FAULTS = ("_errors", "_timeouts", "_unreadable")  # counts beside a reward
_NOT_PARTS = "mean|std|min|max|share|total|zero|unscorable|no_signal|pass_rate"


@dataclass(frozen=True, slots=True)
class Panel:
    """One small chart. The first pattern that matches a logged quantity decides which one is drawn."""

    title: str
    patterns: tuple[str, ...]


RL_PANELS = (
    Panel("Reward", (r"reward/mean", r"reward/total")),
    Panel(
        "Accuracy of training samples", (r"(?!watch)\w+/accuracy(_mean)?", r"\w+/pass(_rate)?", r"\w+/part/accuracy")
    ),
    Panel("Format reward", (r"reward/(part[s_/]*)?format",)),
    Panel("Language consistency reward", (r"reward/(part[s_/]*)?language\w*",)),
    Panel("Length, tokens", (r"\w+/length_mean", r"(?!watch)\w+/length")),
    Panel("Truncated share", (r"\w+/truncated\w*", r"\w+/truncation\w*")),
    Panel("Entropy, nats", (r"\w+/entropy\w*",)),
    Panel("KL to the reference", (r"kl/reference\w*", r"loss/kl\w*", r"kl/\w+")),
    Panel("Tokens clipped above", (r"loss/clip_fraction_high", r"loss/clip_fraction")),
    Panel("Tokens clipped below", (r"loss/clip_fraction_low",)),
    Panel("Groups without signal", (r"\w+/\w*(no_signal|zero_signal|without_signal)\w*",)),
    Panel("Mismatch of generator and trainer", (r"mismatch/\w*abs\w*", r"mismatch/kl", r"mismatch/\w+")),
    Panel("Experts on which generator and trainer agree", (r"mismatch/routing_agreement",)),
    Panel("Gradient norm", (r"\w+/grad(ient)?_norm",)),
    Panel("Watch: learned reward, held-out prompts", (r"watch/reward",)),
    Panel("Watch: second judge, same answers", (r"watch/second",)),
    Panel("Watch: held-out accuracy", (r"watch/accuracy",)),
    Panel("Watch: length of general answers", (r"watch/length",)),
    Panel("Watch: reward and judges have parted", (r"watch/parted",)),
)
SFT_PANELS = (
    Panel("Training loss, nats per token", (r"loss/(mean|train|sft|nll|cross_entropy|total)", r"train/loss", r"loss")),
    Panel("Loss on preferences, nats", (r"loss/preference",)),
    Panel("Accuracy on training preferences", (r"preference/accuracy",)),
    Panel("Held-out loss, nats per token", (r"loss/(heldout|held_out|validation|val|eval)\w*", r"eval/loss")),
)


def scores_chart(checkpoints: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Html:
    """pass@1 with its interval and cons@k of every checkpoint, one line each."""
    scored = [name for name in names if checkpoints[name]["overall"].get("pass@1")]
    if not scored:
        return Html("")
    rows = [checkpoints[name]["overall"] for name in scored]
    labels = [_label(name) for name in scored]
    mean = [100 * r["pass@1"]["mean"] for r in rows]
    figure = go.Figure()
    figure.add_scatter(
        x=[None if r.get("cons@k") is None else 100 * r["cons@k"] for r in rows],
        y=labels,
        mode="markers",
        name="cons@k",
        marker={"symbol": "circle-open", "size": 9, "color": MUTED, "line": {"width": 1.5}},
        hovertemplate="%{y}: cons@k %{x:.1f}<extra></extra>",
    )
    figure.add_scatter(
        x=mean,
        y=labels,
        mode="markers",
        name="pass@1, 95 % interval",
        marker={"size": 9, "color": ACCENT},
        error_x={
            "array": [100 * r["pass@1"]["high"] - m for r, m in zip(rows, mean, strict=True)],
            "arrayminus": [m - 100 * r["pass@1"]["low"] for r, m in zip(rows, mean, strict=True)],
            "thickness": 1.5,
            "width": 0,
            "color": ACCENT,
        },
        hovertemplate="%{y}: pass@1 %{x:.1f}<extra></extra>",
    )
    _dress(figure, height=90 + 30 * len(scored))
    figure.update_layout(margin_b=36)
    figure.update_xaxes(range=[0, 101], tickvals=[0, 20, 40, 60, 80, 100], gridcolor=RULE)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})
    return _embed(figure, "scores-chart")


def learning_curves(stages: Sequence[StageFiles], label: Callable[[str], str] = str) -> Html:
    """RL stages together, then SFT stages together: one panel per quantity, one line per stage, shared axes.

    `label` gives the name of a stage in the legend.
    """
    rl = [stage for stage in stages if stage.metrics and _is_rl(stage)]
    sft = [stage for stage in stages if stage.metrics and not _is_rl(stage)]
    return join(
        [
            _panels("Reinforcement learning", "rl", rl, RL_PANELS, label) if rl else "",
            _panels("Supervised training", "sft", sft, SFT_PANELS, label) if sft else "",
        ]
    )


def _is_rl(stage: StageFiles) -> bool:
    return any(key.startswith("reward/") for record in stage.metrics for key in record)


def _panels(
    title: str, anchor: str, stages: Sequence[StageFiles], panels: Sequence[Panel], label: Callable[[str], str]
) -> Html:
    keys = sorted({key for stage in stages for record in stage.metrics for key in record} - {"step"})
    chosen: list[tuple[str, str]] = []
    for panel in panels:
        key = _match(panel, [key for key in keys if key not in dict(chosen)])
        if key:
            chosen.append((key, panel.title))
    # Reward parts that no panel names (a preference reward, say) get one too: they are what RL optimises. Counts of
    # errors do when there were any.
    parts = [k for k in keys if re.fullmatch(rf"reward/(?!({_NOT_PARTS})\b)\w+", k) and k not in dict(chosen)]
    faults = [key for key in parts if key.endswith(_FAULTS)]
    had = [key for key in faults if any(record.get(key) for stage in stages for record in stage.metrics)]
    parts = [*(key for key in parts if key not in faults), *had]
    chosen += [(key, f"Reward part: {key.removeprefix('reward/')}") for key in parts[:6]]
    legend = join(
        fill('<span><i style="background:{}"></i>{}</span>', _colour(i), label(stage.name))
        for i, stage in enumerate(stages)
    )
    drawn = join(
        fill(
            '<div class="panel"><b title="{}">{}</b>{}</div>',
            key,
            name,
            _embed(_curves(stages, key), f"{anchor}-{i}"),
        )
        for i, (key, name) in enumerate(chosen)
    )
    rest = [key for key in keys if key not in dict(chosen)]
    return fill(
        '<h3>{}</h3><p class="legend">{}</p><div class="panels">{}</div>{}',
        title,
        legend,
        drawn,
        _other_quantities(stages, rest) if rest else "",
    )


def _match(panel: Panel, keys: Sequence[str]) -> str | None:
    for pattern in panel.patterns:
        for key in keys:
            if re.fullmatch(pattern, key):
                return key
    return None


def _curves(stages: Sequence[StageFiles], key: str) -> go.Figure:
    figure, curves = go.Figure(), list[Sequence[float]]()
    for i, stage in enumerate(stages):
        pairs = [(r["step"], r[key]) for r in stage.metrics if _is_number(r.get("step")) and _is_number(r.get(key))]
        if not pairs:
            continue
        steps, values = [p[0] for p in pairs], [p[1] for p in pairs]
        curves.append(values)
        smooth = moving_average(values, max(1, round(WINDOW_SHARE * len(values))))
        line = {"color": _colour(i)}
        if band := stage.expected.get(key):
            smooth = trailing_mean(values, band.window)  # what the band is about
            _shade(figure, band, _colour(i))
            curves += [band.low, band.high]
        figure.add_scatter(x=steps, y=values, mode="lines", line=line | {"width": 1}, opacity=0.25, hoverinfo="skip")
        figure.add_scatter(
            x=steps,
            y=smooth,
            mode="lines",
            line=line | {"width": 2},
            hovertemplate=f"{_label(stage.name)}, step %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    _dress(figure, height=170)
    axis = without_spikes(curves)
    figure.update_yaxes(nticks=5, gridcolor=RULE, exponentformat="e", range=axis)
    if axis:
        ends = f"spikes from {min(map(min, curves)):.2g} to {max(map(max, curves)):.2g}"
        figure.add_annotation(
            text=ends, xref="paper", yref="paper", x=1, y=1, yanchor="top", showarrow=False, font_color=MUTED
        )
    figure.update_xaxes(nticks=5, showgrid=False, ticks="outside", tickcolor=RULE)
    return figure


def without_spikes(curves: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """The axis for all but lone spikes, which are gone within two steps, where these would flatten the rest; else None.

    Rises and falls that last belong to it, as does every curve of the chart.
    """
    lasting = [median(values[max(0, i - 2) : i + 3]) for values in curves for i in range(len(values))]
    every = [value for values in curves for value in values]
    low, high = min(lasting, default=0.0), max(lasting, default=0.0)
    room = high - low
    if not room or max(max(every) - high, low - min(every)) <= 4 * room:
        return None
    return low - room / 10, high + room / 10


def _shade(figure: go.Figure, band: Band, colour: str) -> None:
    figure.add_scatter(
        x=[*band.steps, *reversed(band.steps)],
        y=[*band.high, *reversed(band.low)],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        opacity=0.12,
        hoverinfo="skip",
    )


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean over the 2 * window + 1 values around each; fewer at the ends, so that nothing is shifted."""
    averaged = []
    for i in range(len(values)):
        near = values[max(0, i - window) : i + window + 1]
        averaged.append(math.fsum(near) / len(near))
    return averaged


def _other_quantities(stages: Sequence[StageFiles], keys: Sequence[str]) -> Html:
    """First and last value of what no panel shows."""
    rows = []
    for key in keys:
        cells = []
        for stage in stages:
            values = [record[key] for record in stage.metrics if _is_number(record.get(key))]
            cells.append(f"{number(values[0])} → {number(values[-1])}" if values else "–")
        rows.append(row(key, cells))
    shown = table(["Quantity", *(stage.name for stage in stages)], rows, "Value at the first and at the last step.")
    return details("Everything else that was logged", shown)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _label(name: str) -> str:
    # Plotly reads a few HTML tags in labels; a name from a file may not use them.
    return str(text(name))


def _dress(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 8, "t": 6, "b": 8},
        font=FONT,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hoverlabel={"bgcolor": "#ffffff", "bordercolor": RULE, "font": FONT},
    )
    figure.update_xaxes(automargin=True, zeroline=False, linecolor=RULE, showline=True, fixedrange=True)
    figure.update_yaxes(automargin=True, zeroline=False, fixedrange=True)


def _embed(figure: go.Figure, identifier: str) -> Html:
    """The figure as a div and a script; plotly.js itself is in the page once. Plotly escapes </script> in the data."""
    markup = plotly.io.to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        div_id=identifier,
        config={"displayModeBar": False, "responsive": True},
    )
    return Html(markup)
