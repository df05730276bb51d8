"""The report of a run: one HTML file that needs nothing else, written from what the stages left on disk.

The same files give the same bytes: no date of today, no random ids. Nothing in the page can make a request.
"""

from pathlib import Path

import plotly.offline

from pipeline.artifact import write_text
from pipeline.report_data import DIGEST_META, REPORT, RunFiles, artifacts_digest, read_run
from pipeline.report_html import Html, fill, join
from pipeline.report_scores import findings, headline, scores
from pipeline.report_sections import curves, data_cards, lineage, samples
from pipeline.report_style import POLICY, STYLE

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="{digest_meta}" content="{digest}">
<title>{title}: report</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
{body}
</body>
</html>
"""

_CONTENTS = {
    "scores": "Scores",
    "findings": "Findings",
    "curves": "Curves",
    "samples": "Samples",
    "data": "Data",
    "lineage": "Lineage",
}


def write_report(run_folder: Path) -> Path:
    """Write run_folder/report.html and return its path.

    Raises:
        FileNotFoundError: when the run folder does not exist.
    """
    page = render(read_run(run_folder))
    path = run_folder / REPORT
    write_text(path, page)
    return path


def render(run: RunFiles) -> Html:
    """The whole page."""
    links = join(fill('<a href="#{}">{}</a>', anchor, title) for anchor, title in _CONTENTS.items())
    unreadable = join(fill('<p class="missing">{}</p>', sentence) for sentence in run.unreadable)
    parts = [
        headline(run),
        fill('<nav aria-label="Contents">{}</nav>', links),
        unreadable,
        *(build(run) for build in (scores, findings, curves, samples, data_cards, lineage)),
    ]
    return fill(
        _PAGE,
        policy=POLICY,
        digest_meta=DIGEST_META,
        digest=artifacts_digest(run.stages),
        title=run.name,
        style=Html(STYLE),
        plotly=Html(plotly.offline.get_plotlyjs()),
        body=join(parts, "\n"),
    )
