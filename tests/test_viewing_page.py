"""The page of `r1 view` in a real browser."""

import os
import re
import shutil
import subprocess

import pytest

from tests.recorded_run import make_run
from tests.test_viewing_server import served

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium or google-chrome on the path")


def shown(url, folder):
    """The document after its scripts have run and asked the server."""
    flags = ["--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}", "--virtual-time-budget=4000"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses root with it
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_markup_in_a_completion_is_shown_as_text_and_never_runs(tmp_path):
    with served(make_run(tmp_path)) as port:
        page = shown(f"http://127.0.0.1:{port}/#groups?of=demo/zero&group=nasty&at=5", tmp_path / "profile")
    assert "<title>r1 view</title>" in page  # the completion would set another one
    text = re.sub(r"<[^>]*>", "", page)
    assert text.count("&lt;script&gt;document.title='hacked'&lt;/script&gt;&lt;img src=x onerror=") == 3
    assert "onerror=" not in "".join(re.findall(r"<[^>]*>", page)) and "<img" not in page


def test_curves_are_drawn(tmp_path):
    with served(make_run(tmp_path)) as port:
        page = shown(f"http://127.0.0.1:{port}/", tmp_path / "profile")
    assert page.count('class="scatterlayer') == 3  # reward, pass rate and sampling time
    assert "reward/mean" in page and '<p id="status" role="status"></p>' in page
