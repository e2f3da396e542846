"""The report in a real browser, where there is one: no error, nothing wider than the window, light and dark."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures_cli import run
from test_report import _built_run, finished, page_of  # noqa: F401

pytest_plugins = ["fixtures_cli"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LISTEN = "<script>window.problems = []; window.onerror = message => problems.push(String(message));</script>"
PROBE = """<script>
window.addEventListener("load", () => {
  const root = document.documentElement;
  root.lang = "LANGUAGE";
  parent.found.push({problems, excess: root.scrollWidth - root.clientWidth, text: document.body.innerText.length,
                     is_dark: matchMedia("(prefers-color-scheme: dark)").matches});
  parent.document.body.dataset.found = JSON.stringify(parent.found);
});
</script>"""
BROKEN = "<body><div style='width: 3000px'>wide</div><script>nothing.there()</script></body>"


def look_at(pages: list[tuple[str, str, int]], folder: Path, *, is_dark: bool) -> list[dict]:
    """What a browser finds on pages of (HTML, language, width in pixels): errors, pixels too wide, characters shown."""
    frames = []
    for page, language, width in pages:
        probed = (LISTEN + page).replace("</body>", PROBE.replace("LANGUAGE", language) + "</body>")
        frames.append(f'<iframe width="{width}" height="700" srcdoc="{html.escape(probed)}"></iframe>')
    outer = folder / "frames.html"
    outer.write_text(f'<meta charset="utf-8"><body><script>window.found = []</script>{"".join(frames)}', "utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", scheme,
               "--dump-dom", outer.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (told,) = re.findall(r'data-found="([^"]*)"', done.stdout)
    return json.loads(html.unescape(told))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("is_dark", [False, True])
def test_page_fits_phone_and_desktop_in_both_languages(finished, tmp_path, is_dark):  # noqa: F811
    assert run("report", "out") == 0
    page = page_of(finished)
    looks = [(page, language, width) for language in ("zh", "en") for width in (360, 1280)]
    found = look_at([*looks, (BROKEN, "en", 360)], tmp_path, is_dark=is_dark)
    assert len(found) == 5
    broken = [one for one in found if one["problems"]]
    assert len(broken) == 1 and broken[0]["excess"] > 2000, "a page with mistakes has to be noticed"
    for one in found:
        assert one["is_dark"] == is_dark
        assert one is broken[0] or (one["excess"] <= 0 and one["text"] > 1000)
