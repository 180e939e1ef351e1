"""The code in the README runs as it stands, only with fewer epochs; promises name tests that exist."""

import re
import tomllib
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="an installed package has no README beside it")
def test_the_code_in_the_readme_runs_and_prints_its_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)), names)
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("[1/5] training the VAE: epoch") for line in printed)
    assert any(line.startswith("AlignmentReport(") for line in printed)
    scores = [float(line) for line in printed if re.fullmatch(r"0\.\d+", line)]
    promised = float(re.search(r"pipeline.score\(X_rotated, y_test\)\) +# (0\.\d+);", text).group(1))
    assert scores == pytest.approx([promised], abs=0.02)  # another processor rounds otherwise
    assert names["T"].shape == (1000, 785)
    assert (tmp_path / "aligner.safetensors").exists()


# ---------------------------------------------------------------- plain English
def sentences(text):
    """Yield the sentences of a page, without its code, tables, pictures and addresses."""
    text = re.sub(r"(?s:```.*?```)|^( {4}|\||#|!\[).*$", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)|`+", "", text)
    for paragraph in re.split(r"\n\s*\n|\n\s*[-*\d.]+ ", text):
        yield from re.split(r"(?<=[.?!:;·])\**\s+", " ".join(paragraph.split()))


def long_sentences(path, n_words=25):
    """Return the sentences that have more words than a reader takes in at once."""
    return [sentence for sentence in sentences(path.read_text(encoding="utf-8")) if len(sentence.split()) > n_words]


DOCS = README.parent / "docs"
PAGES = [README, *(README.parent / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY"))]
PAGES += sorted([*DOCS.glob("*.md"), *(DOCS / "decisions").glob("*.md")])


@pytest.mark.skipif(not README.exists(), reason="an installed package has no README beside it")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_says_one_thought_a_sentence(page):
    assert long_sentences(page) == []


@pytest.mark.skipif(not README.exists(), reason="an installed package has no README beside it")
def test_the_readme_is_short_and_shows_a_picture_first():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    tables = [row for row in text.splitlines() if row.startswith("|")]
    assert all(row.count("|") - 1 <= 5 for row in tables)
    first = text.index("![", text.index("**"))
    assert text[:first].count("\n") < 12  # a picture on the first screen


@pytest.mark.skipif(not README.exists(), reason="an installed package has no documentation beside it")
def test_every_promise_names_tests_that_exist():
    docs = README.parent / "docs"
    promises = (docs / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"\[(test_\w+)\]\((.*?\.py)\)", promises)
    assert len(named) > 40
    for name, path in named:
        assert f"def {name}(" in (docs / path).read_text(encoding="utf-8"), name
    rows = [
        row
        for row in promises.splitlines()
        if row.startswith("| ") and not row.startswith(("| promise", "| parameter", "| method", "| ---"))
    ]
    assert all("](../tests/" in row or "`make soak`" in row for row in rows)


@pytest.mark.skipif(not README.exists(), reason="an installed package has no README beside it")
def test_badges_say_what_pyproject_says():
    project = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    badge = {
        name: (DOCS / "images" / f"badge_{name}.svg").read_text(encoding="utf-8") for name in ("python", "license")
    }
    assert f">{project['requires-python'].removeprefix('>=')}+<" in badge["python"]
    assert f">{project['license']}<" in badge["license"]
