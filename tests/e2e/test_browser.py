"""report.html in a real browser: nothing overflows, every picture loads and has words, text can be read.

Needs chromium (apt-get install chromium); skipped with a reason where there is none.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from faq_deploy.report import write_html
from tests.test_report import rich

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")

# What can only be seen once a page was laid out, written into it as JSON.
_PROBE = """
<script>
window.addEventListener("load", () => {
  const rgb = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 && n[3] === 0 ? null : n; };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found) return found;
    }
    return [255, 255, 255];
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (node) => {
    const own = node.closest("svg") ? getComputedStyle(node).fill : getComputedStyle(node).color;
    const [a, b] = [light(rgb(own)), light(behind(node))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const texts = [...document.querySelectorAll("body *")].filter(
    (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()));
  const seen = texts.map((node) => [contrast(node), node.textContent.trim().slice(0, 30)]);
  const worst = seen.sort((a, b) => a[0] - b[0])[0];
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify({
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    broken: [...document.images].filter((image) => !image.naturalWidth).length,
    pictures: document.images.length + document.querySelectorAll("svg").length,
    unnamed: [...document.querySelectorAll("img, body svg")].filter(
      (node) => !(node.getAttribute("alt") || node.getAttribute("aria-label"))).length,
    headings: [...document.querySelectorAll("h1, h2")].map((node) => node.textContent),
    worst, dark: matchMedia("(prefers-color-scheme: dark)").matches,
  });
  document.body.append(out);
});
</script>
"""


@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("dark", [False, True])
def test_page_is_laid_out_readable_and_whole(tmp_path: Path, width: int, dark: bool) -> None:
    assert BROWSER is not None
    write_html(rich(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    (tmp_path / "probed.html").write_text(page.replace("</body>", f"{_PROBE}</body>"), "utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", scheme, "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "probed.html").as_uri()], capture_output=True, text=True, timeout=180, check=True
    )
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert probe is not None, done.stdout[-500:] + done.stderr[-2000:]
    found = json.loads(unescape(probe[1]))
    assert found["dark"] is dark
    assert found["overflow"] <= 0
    assert (found["broken"], found["unnamed"]) == (0, 0)
    assert found["pictures"] >= 6
    assert {"Stages", "Gates", "Accuracy", "Images that flipped", "Classes", "Latency", "Layers"} <= {
        *found["headings"]
    }
    assert found["worst"][0] >= 4.5, found["worst"]  # WCAG AA
