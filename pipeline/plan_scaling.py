"""The page of `r1 plan --simulate`: tokens per second against devices, by staleness, beside ideal scaling."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import plotly.io
import plotly.offline

from pipeline.config import Pipeline
from pipeline.errors import RecipeError
from pipeline.plan_requests import Requests
from pipeline.report_html import Html, fill, join, row, table
from pipeline.report_style import COLOURS, INK, MUTED, POLICY, RULE, STYLE
from planning.devices import LOCAL, UnknownCluster, parse_cluster
from planning.scaling import FAILURES, RESTART_S, CannotScale, ScalingPoint, scaling

if TYPE_CHECKING:
    from planning.assumptions import Assumptions

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
_WITH_FAILURES = 2  # the staleness that is simulated with failures as well, over a longer time: they are rare


def write_scaling(pipeline: Pipeline, cluster: str, assumed: "Assumptions", path: Path) -> Path:
    """Simulate the first stage of the pipeline that samples what it trains on. Takes about a minute."""
    if cluster == LOCAL:
        raise RecipeError("--simulate is about accelerators: name a cluster of them, e.g. --cluster 64x8xH800")
    try:
        parsed = parse_cluster(cluster)
        request = next(r for _, r in Requests(pipeline) if r.kind in ("grpo", "on_policy_distill"))
        calm = scaling(request, parsed, assumed)
        rough = scaling(request, parsed, assumed, staleness=(_WITH_FAILURES,), failures=True)
    except StopIteration:
        raise RecipeError(
            f"{pipeline.file}: no stage samples what it trains on, so there is nothing to simulate"
        ) from None
    except (UnknownCluster, CannotScale) as error:
        raise RecipeError(str(error)) from None
    title = f"Scaling of {request.name} on {parsed.device.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(title, calm, rough), encoding="utf-8")
    return path


def render(title: str, calm: Sequence[ScalingPoint], rough: Sequence[ScalingPoint]) -> Html:
    words = fill(
        "<p>Tokens trained on per second, simulated: completions of different lengths, a trainer that waits for all of "
        "a rollout batch, generators that may run ahead of it by so many rollout batches (staleness). At 0 the phases "
        "take turns on all devices. The rollout batch is the recipe's on every number of devices. Dotted: as many "
        "times the 64 devices at staleness 0. Dashed: with failures ({} per 1,000 devices and day, {} minutes "
        "each).</p>",
        f"{FAILURES * 86_400 * 1000:.2f}",
        f"{RESTART_S / 60:.0f}",
    )
    return fill(
        _PAGE,
        policy=POLICY,
        title=title,
        style=Html(STYLE),
        plotly=Html(plotly.offline.get_plotlyjs()),
        body=join([words, _chart(calm, rough), _table(calm, rough)], "\n"),
    )


def _chart(calm: Sequence[ScalingPoint], rough: Sequence[ScalingPoint]) -> Html:
    figure = go.Figure()
    first = calm[0]
    counts = sorted({point.devices for point in calm})
    ideal = [first.tokens_per_s * count / first.devices for count in counts]
    figure.add_scatter(
        x=counts, y=ideal, mode="lines", name="ideal", line={"color": MUTED, "dash": "dot", "width": 1.5}
    )
    for index, staleness in enumerate(sorted({point.staleness for point in calm})):
        own = [point for point in calm if point.staleness == staleness]
        _add(figure, own, f"staleness {staleness}", {"color": COLOURS[index], "width": 2})
        if staleness == _WITH_FAILURES:
            _add(
                figure,
                rough,
                f"staleness {staleness}, failures",
                {"color": COLOURS[index], "width": 1.5, "dash": "dash"},
            )
    font = {"family": "Helvetica Neue, Helvetica, Arial, sans-serif", "size": 13, "color": INK}
    figure.update_layout(
        template="none", height=480, font=font, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 8, "t": 8, "b": 8}, legend={"x": 0.02, "y": 0.98},
    )  # fmt: skip
    common = {"type": "log", "automargin": True, "gridcolor": RULE, "zeroline": False}
    figure.update_xaxes(title="devices", tickvals=counts, ticktext=[f"{count:,}" for count in counts], **common)
    figure.update_yaxes(title="tokens per second", dtick=1, **common)
    settings = {"displayModeBar": False, "responsive": True}
    return Html(plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, div_id="scaling", config=settings))


def _add(figure: go.Figure, points: Sequence[ScalingPoint], name: str, line: dict) -> None:
    figure.add_scatter(
        x=[point.devices for point in points],
        y=[point.tokens_per_s for point in points],
        mode="lines+markers",
        name=name,
        line=line,
        hovertemplate=f"{name}: %{{x:,}} devices, %{{y:,.0f}} tokens/s<extra></extra>",
    )


def _table(calm: Sequence[ScalingPoint], rough: Sequence[ScalingPoint]) -> Html:
    first = calm[0]
    rows = []
    for point in [*calm, *rough]:
        ideal = first.tokens_per_s * point.devices / first.devices
        label = f"{point.staleness}{', failures' if point in rough else ''}"
        cells = [
            f"{point.devices:,}",
            f"{point.generators:,}",
            f"{point.outcome.batch_s:,.0f}",
            f"{point.tokens_per_s:,.0f}",
            f"{point.tokens_per_s / ideal:.0%}",
            f"{point.outcome.staleness:.2f}",
            f"{point.outcome.failures}",
        ]
        rows.append(row(label, cells))
    header = [
        "staleness", "devices", "of them sample", "seconds per rollout batch", "tokens/s", "of ideal", "mean staleness",
        "failures",
    ]  # fmt: skip
    return table(header, rows, "Mean staleness is in rollout batches, over all completions that were trained on.")
