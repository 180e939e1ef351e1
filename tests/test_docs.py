"""The documentation: what pages claim is there, their code runs, and built pages open whole in a browser."""

import json
import re
import shutil
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sk_avae.datasets
from sk_avae.affine import FAMILIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = DOCS / "_build" / "html"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="an installed package has no docs beside it")


def test_the_package_says_that_it_is_typed():
    assert resources.files("sk_avae").joinpath("py.typed").is_file()


# ---------------------------------------------------------------- sources
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_lead_to_files_and_named_tests_exist(page):
    for text, target in LINK.findall((DOCS / page).read_text(encoding="utf-8")):
        path = target.split("#")[0]
        if "://" in target or not path or path.startswith(("gallery/", "generated/")):
            continue
        assert (DOCS / path).exists(), target
        if text.startswith("test_") and not text.endswith(".py"):
            assert f"def {text}(" in (DOCS / path).read_text(encoding="utf-8"), text


RUN = [*sorted(path.stem for path in DOCS.glob("how_to_*.md")), "contributing", "install", "serving", "when_not_to_use"]


@pytest.mark.parametrize("page", RUN)
@pytest.mark.usefixtures("few_lessons")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    for package in {"PIL", "skops"} & set(re.findall(r"(?:from|import) (\w+)", code)):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    load = sk_avae.datasets.load_mnist_sample

    def few(subset="train"):
        # From all over the sample, so that all classes are among them.
        return tuple(array[:: len(array) // 120][:120] for array in load(subset))

    monkeypatch.setattr("sk_avae.datasets.load_mnist_sample", few)
    monkeypatch.setattr("sk_avae.learning.fit._EPOCHS", 1)
    before = dict(FAMILIES)  # the page on contributing adds a family
    try:
        exec(re.sub(r"max_epochs=\d+", "max_epochs=1", code), {})
    finally:
        FAMILIES.clear()
        FAMILIES.update(before)


def test_worked_examples_are_short():
    text = (DOCS / "contributing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    assert all(len(block.splitlines()) < 40 for block in blocks)


# ---------------------------------------------------------------- built pages, in a browser
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium or chromedriver is not installed")
    if not (BUILT / "index.html").exists():
        pytest.skip("docs/_build/html is not built: make docs-fast")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driver
    driver.quit()


WIDTHS = {"phone": 390, "desktop": 1400}
# What is wider than the page, but neither scrolls by itself nor lies inside what does.
OVERFLOW = """
const page = document.documentElement.clientWidth;
const scrolls = e => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
const wide = [...document.querySelectorAll("article *")].filter(
    e => e.getBoundingClientRect().right > page + 1 && e.checkVisibility() && !scrolls(e));
return document.documentElement.scrollWidth > page ? wide.slice(0, 3).map(e => e.outerHTML.slice(0, 120)) : [];
"""
# Text whose contrast with what lies behind it is less than WCAG's AA asks for (4.5).
CONTRAST = """
const rgba = c => c.match(/[\\d.]+/g).map(Number);
const behind = e => { for (; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0.99) return c; }
    return [255, 255, 255]; };
const linear = v => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = c.slice(0, 3).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const texts = [...document.querySelectorAll("article p, article li, article td, article th, article h1, article h2, " +
    "article code, article pre span, article a")].filter(e => e.checkVisibility() && e.textContent.trim());
return texts.map(e => { const [x, y] = [light(rgba(getComputedStyle(e).color)), light(behind(e))];
    return [(Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05), e.outerHTML.slice(0, 120)]; })
    .filter(([ratio]) => ratio < 4.5).slice(0, 3);
"""

STATE = """
const images = [...document.images];
images.forEach(image => { image.loading = "eager"; });
return {
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    ids: [...document.querySelectorAll("[id]")].map(e => e.id),
    pending: images.filter(image => !image.complete).length,
    untold: images.filter(image => !image.alt && !image.closest(".sphx-glr-thumbcontainer")).map(image => image.src),
    missing: images.filter(image => image.complete && image.naturalWidth === 0).map(image => image.src),
};
"""


def requests_outside(log):
    """Return the addresses that a page asked for and that are no files."""
    messages = [json.loads(entry["message"])["message"] for entry in log]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:", "about:"))]


@pytest.mark.filterwarnings("default")
def test_every_page_opens_whole(browser):
    wait = pytest.importorskip("selenium.webdriver.support.wait")
    pages = sorted(page for page in BUILT.rglob("*.html") if "_static" not in page.parts)
    states, problems = {}, []
    for page in pages:
        browser.get(page.as_uri())
        wait.WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(STATE)["pending"] == 0)
        state = states[page] = browser.execute_script(STATE)
        name = page.relative_to(BUILT)
        problems += [f"{name}: no image {image}" for image in state["missing"]]
        problems += [f"{name}: no words for {image}" for image in state["untold"]]
        problems += [f"{name}: {e['message']}" for e in browser.get_log("browser") if e["level"] == "SEVERE"]
        problems += [f"{name}: asks {url}" for url in requests_outside(browser.get_log("performance"))]
    for page, state in states.items():
        for link in set(state["links"]):
            parts = urlsplit(link)
            if parts.scheme != "file":
                continue
            target = Path(unquote(parts.path))
            anchor = unquote(parts.fragment)
            if not target.exists():
                problems.append(f"{page.relative_to(BUILT)}: broken link {link}")
            elif anchor and target in states and anchor not in states[target]["ids"]:
                problems.append(f"{page.relative_to(BUILT)}: no anchor {link}")
    assert len(pages) > 20
    assert problems == []


def built_pages():
    """Return the pages that people read: not the source code, the index and the search."""
    skipped = ("_static", "_modules")
    pages = [page for page in BUILT.rglob("*.html") if not set(skipped) & set(page.relative_to(BUILT).parts)]
    return sorted(page for page in pages if page.name not in ("genindex.html", "search.html", "py-modindex.html"))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_no_page_is_wider_than_the_window(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    problems = []
    for page in built_pages():
        browser.get(page.as_uri())
        problems += [f"{page.relative_to(BUILT)}: {element}" for element in browser.execute_script(OVERFLOW)]
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert problems == []


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_lies_behind_it(browser, theme):
    problems = []
    for page in built_pages():
        browser.get(page.as_uri())
        browser.execute_script("document.documentElement.dataset.theme = arguments[0];", theme)
        problems += [f"{page.relative_to(BUILT)}: {ratio:.1f} {e}" for ratio, e in browser.execute_script(CONTRAST)]
    assert problems == []
