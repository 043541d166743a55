"""Headless Chromium, by its command line: what it measures of a page, and what it complains about."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
]
MEASURE = """<script>
addEventListener("load", () => {
  const images = [...document.images], root = document.documentElement, folded = root.scrollHeight;
  document.querySelectorAll("details").forEach(d => { d.open = true; });
  const holes = [...document.querySelectorAll(".gallery")].filter(g => {
    const rows = {};
    [...g.children].forEach(f => { const r = f.getBoundingClientRect(); (rows[Math.round(r.top)] ||= []).push(r); });
    const outer = g.getBoundingClientRect();
    return Object.values(rows).some(row => {  // as far from the left as from the right
      const left = Math.min(...row.map(r => r.left)) - outer.left;
      const right = outer.right - Math.max(...row.map(r => r.right));
      return Math.abs(left - right) > 2;
    });
  });
  parent.postMessage({
    folded: folded, holes: holes.length, width: innerWidth, scroll: root.scrollWidth, images: images.length,
    broken: images.filter(i => !i.complete || i.naturalWidth === 0).length,
    hidden: images.filter(i => i.getBoundingClientRect().width < 200).length,
    small: [...document.querySelectorAll("p, td, th, dt, dd, figcaption, a")]
      .filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length,
    headings: [...document.querySelectorAll("h2")].map(h => h.textContent)}, "*");
});
</script>"""
# windows narrower than 500 px are not made: the page is held in a frame of the width that is wanted
WRAPPER = """<html><body><pre id="found"></pre><script>
addEventListener("message", e => { document.getElementById("found").textContent = JSON.stringify(e.data); });
</script><iframe src="page.html" style="border:0; width:%dpx; height:900px"></iframe></body></html>"""


def _dump(path):
    with tempfile.TemporaryDirectory(prefix="accmaker-chromium-") as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom"]
        result = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return result.stdout, console


def console_lines(path):
    """What a page writes to the console as it is."""
    return _dump(Path(path))[1]


def measure(path, width, folder):
    """Sizes of a page shown at a width in px. A copy is shown, with a script that measures it."""
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    text = policy.sub("", Path(path).read_text(encoding="utf-8"))
    (folder / "page.html").write_text(text.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    wrapper = folder / "wrapper.html"
    wrapper.write_text(WRAPPER % width)
    dom, _ = _dump(wrapper)
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, flags=re.DOTALL)[1]
    return json.loads(found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
