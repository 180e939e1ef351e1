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


@pytest.mark.parametrize("page", ["quickstart", "user_guide", "contributing"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = sk_avae.datasets.load_mnist_sample
    monkeypatch.setattr(
        "sk_avae.datasets.load_mnist_sample", lambda subset="train": tuple(array[:300] for array in load(subset))
    )
    before = dict(FAMILIES)  # the page on contributing adds a family
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    code = re.sub(r"max_epochs=\d+", "max_epochs=1", code)
    try:
        exec(code, {})
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


STATE = """
const images = [...document.images];
images.forEach(image => { image.loading = "eager"; });
return {
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    ids: [...document.querySelectorAll("[id]")].map(e => e.id),
    pending: images.filter(image => !image.complete).length,
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
