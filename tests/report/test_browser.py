"""The report in a browser: quiet, alone, complete, inside the page on a phone and on paper.

Debian's Chromium through its own driver (packages ``chromium`` and ``chromium-driver``). Without them
these tests are skipped, but where ``CI`` is set they fail.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service

from stl_deploy import load
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import load as load_raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.ir.network import IntegerNetwork
from tests.build.nets import ZOO, ZOO_RASTER, random_net, random_spikes

DESKTOP, PHONE, PAPER = 1280, 390, 718  # pixels; A4 between margins of a centimetre
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PROFILES = ("loihi1-spice", "loihi1-nahuku", "loihi2-pilotnet")

# What reaches beyond the page, or beyond its own box: text in a card, a caption. Tables may be wider
# where they can be scrolled.
BEYOND = """
const width = arguments[0], page = document.documentElement, found = [];
if (page.scrollWidth > width) found.push(`the page, ${page.scrollWidth}`);
for (const element of document.body.querySelectorAll("*")) {
  if (element.closest("svg") !== null) continue;
  const scroll = element.parentElement.closest(".scroll"), box = element.getBoundingClientRect();
  if (scroll !== null && getComputedStyle(scroll).overflowX === "auto") continue;
  const spills = !element.matches(".scroll") && element.clientWidth > 0
    && element.scrollWidth > element.clientWidth + 1;
  if (box.right > width + 1 || box.left < -1 || spills)
    found.push(`${element.tagName} ${element.className}: ${element.textContent.trim().slice(0, 40)}`);
}
return found;
"""
# Captions of the figures with what is drawn in them, and the pictures of spikes.
FIGURES = """
const size = element => { const box = element.getBoundingClientRect(); return [box.width, box.height]; };
return [...document.querySelectorAll(".figures figure")].map(figure => [
  figure.querySelector("figcaption").textContent,
  figure.querySelectorAll("svg path").length,
  ...[...figure.querySelectorAll("svg")].map(size)]);
"""
# The boxes of the network's drawing that have a size, and its lines.
GRAPH = """
const drawn = what => [...document.querySelectorAll(`.graph ${what}`)].filter(
  element => element.getBoundingClientRect().width > 10).length;
return [drawn("rect"), drawn(".way path")];
"""
SPIKES = """
return [...document.images].map(image => [image.alt, image.complete && image.naturalWidth > 0,
  image.getBoundingClientRect().width]);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    """Chromium, to which no name of a host means anything."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root and containers have none, and the page is ours
        "--disable-dev-shm-usage",  # small in a container
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        # Both paths are named, so Selenium looks for none and fetches none.
        started = webdriver.Chrome(options, Service(str(driver)))
    except WebDriverException as error:
        missing(f"Chromium does not start: {error.msg}")
    try:
        yield started
    finally:
        started.quit()


def missing(why: str) -> None:
    """Skip, or fail where nothing may be skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must open the report: {why}")
    pytest.skip(why)


# Reports of real runs


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, tuple[Path, list[str], int]]:
    """Each report with the beginnings of its figures' captions and its number of spike pictures."""
    home = tmp_path_factory.mktemp("reports")
    few = home / "few.npz"
    real = load_raster(ZOO_RASTER)
    assert real.labels is not None
    save_raster(few, Raster(real.spikes[:4], real.labels[:4]), {})
    export("--target", "loihi", ZOO, "--eval", few, "-o", home / "zoo")
    zoo = load(home / "zoo" / "model.nir")
    command = (home / "zoo" / "model.nir", "--input", few, "--report", home / "hw_sim.html")
    call("stl_deploy.commands.hw_sim", *command)
    # Thresholds as profiles, and a name that has no place to break.
    net = random_net()
    model, raster = home / f"{'long' * 25}.pt", home / "small.npz"
    save_checkpoint(net, model)
    save_raster(raster, Raster(random_spikes(net, 3)), {})
    loihi1 = ("--chip", "loihi1", "--thresholds", "grouped")
    export("--target", "nir", model, *loihi1, "--eval", raster, "-o", home / "small")
    small = load(home / "small" / "model.nir")
    return {
        "stl-export": (home / "zoo" / "report.html", captions(zoo), pictures(zoo)),
        "hw_sim": (home / "hw_sim.html", captions(zoo), pictures(zoo)),
        "profiles": (home / "small" / "report.html", captions(small), pictures(small)),
    }


def export(*args: Any) -> None:
    call("stl_deploy.commands.export", *args)


def call(module: str, *args: Any) -> None:
    code = f"from {module} import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, args)], check=True, capture_output=True)


def captions(network: IntegerNetwork) -> list[str]:
    return [
        *(f"{population.name}: " for population in network.weighted),
        "By event",
        "Dynamic, by population",
        *(f"{name}: populations by event" for name in PROFILES),
        *(r"\d+ cores of Intel Loihi \(first", r"\d+ cores of Intel Loihi 2"),
    ]


def pictures(network: IntegerNetwork) -> int:
    return (len(network.inputs) + len(network.populations)) * network.timesteps


# What can be wrong with a page


def faults(browser: webdriver.Chrome, path: Path, figures: list[str], spikes: int) -> list[str]:
    """Everything that is wrong with the page in the file ``path``."""
    found = []
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # what was before
    for width in (DESKTOP, PHONE):
        resize(browser, width)
        browser.get(path.as_uri())
        found += [f"beyond {width}: {what}" for what in browser.execute_script(BEYOND, width)]
        found += missing_figures(browser, figures, spikes)
    found += on_paper(browser)
    found += [f"console: {entry['message']}" for entry in browser.get_log("browser")]
    asked = requests(browser)
    assert path.as_uri() in asked
    return found + [
        f"asks for {url}" for url in asked if not url.startswith((path.as_uri(), "data:"))
    ]


def resize(browser: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def missing_figures(browser: webdriver.Chrome, captions: list[str], spikes: int) -> list[str]:
    found = []
    figures = browser.execute_script(FIGURES)
    if len(figures) != len(captions):
        found.append(f"figures: {len(figures)} and not {len(captions)}")
    for (caption, paths, *sizes), wanted in zip(figures, captions, strict=False):
        seen = len(sizes) == 1 and sizes[0][0] > 200 and sizes[0][1] > 80 and paths > 5
        if not seen or re.match(wanted, caption) is None:
            found.append(f"figure {wanted}: {caption}, {paths} paths in {sizes}")
    boxes, ways = browser.execute_script(GRAPH)
    if boxes < 2 or ways < boxes - 1:
        found.append(f"drawing: {boxes} boxes and {ways} lines")
    images = browser.execute_script(SPIKES)
    if len(images) != spikes:
        found.append(f"pictures of spikes: {len(images)} and not {spikes}")
    return found + [
        f"picture {alt} is not shown" for alt, loaded, width in images if not loaded or width < 30
    ]


def on_paper(browser: webdriver.Chrome) -> list[str]:
    """What leaves the paper, or a PDF that is none. Only the width of paper is known before printing."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    resize(browser, PAPER)
    found = [f"beyond paper: {what}" for what in browser.execute_script(BEYOND, PAPER)]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    pdf = base64.b64decode(browser.print_page())
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    if not pdf.startswith(b"%PDF-") or not 4 <= pages <= 20:
        found.append(f"PDF: {pages} pages in {len(pdf)} bytes")
    return found


def requests(browser: webdriver.Chrome) -> set[str]:
    """Every address that the page asked for, also where nothing answered."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    opened = ("Network.requestWillBeSent", "Network.webSocketCreated")
    sent = [message["params"] for message in messages if message["method"] in opened]
    return {params.get("url") or params["request"]["url"] for params in sent}


@pytest.mark.parametrize("name", ["stl-export", "hw_sim", "profiles"])
def test_nothing_is_wrong_with_a_report(browser, reports, name):
    assert faults(browser, *reports[name]) == []


POLICY = (r'<meta http-equiv="Content-Security-Policy"[^>]*>', "")
BODY = "</body>"
IMAGE = (BODY, f'<img src="https://example.org/x.png" alt="x">{BODY}')
IMPORT = ("<style>", "<style>@import 'https://example.org/x.css';")
SOCKET = (BODY, f"<script>new WebSocket('wss://example.org/')</script>{BODY}")
ERROR = (BODY, f"<script>throw new Error('planted')</script>{BODY}")


@pytest.mark.parametrize(
    ("plants", "expected"),
    [
        pytest.param(
            [POLICY, IMAGE, IMPORT, SOCKET, ERROR],
            [
                "asks for https://example.org/x.png",
                "asks for https://example.org/x.css",
                "asks for wss://example.org/",
                "console: .*planted",
            ],
            id="outside",
        ),
        pytest.param(
            [IMAGE, ERROR],
            [
                "console: .*example.org.*Content Security",
                "console: .*inline script.*Content Security",
            ],
            id="refused",
        ),
        pytest.param(
            [('<svg role="img".*?</svg>', ""), (r"base64,\w{40}", "base64,")],
            ["figure lif1: ", "picture .* is not shown"],
            id="empty figures",
        ),
        pytest.param(
            [
                (r'<figure>\s*<svg role="img".*?</figure>', ""),
                ("<img.*?>", ""),
                ("@media print {", "@media print { main { display: none; }"),
            ],
            ["figures: 10 and not 11", "pictures of spikes: ", "PDF: "],
            id="missing",
        ),
        pytest.param([('<svg class="graph".*?</svg>', "")], ["drawing: 0 boxes"], id="no drawing"),
        pytest.param([("overflow-x: auto;", "")], ["beyond 390: the page"], id="tables"),
        pytest.param([("overflow-wrap: break-word;", "")], ["beyond 390: H1"], id="unbroken name"),
        pytest.param(
            [(r"  th, td \{ white-space: normal; \}", "")],
            ["beyond paper: T"],
            id="tables on paper",
        ),
    ],
)
def test_what_is_planted_is_found(browser, reports, tmp_path, plants, expected):
    path, figures, spikes = reports["profiles"]
    html = path.read_text("utf-8")
    for pattern, new in plants:
        html, times = re.subn(pattern, lambda _, new=new: new, html, count=1, flags=re.S)
        assert times == 1
    planted = tmp_path / "report.html"
    planted.write_text(html, "utf-8")
    found = faults(browser, planted, figures, spikes)
    for fault in expected:
        assert any(re.match(fault, what) for what in found), (fault, found)
