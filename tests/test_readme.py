"""The code in the README runs as it stands, only with fewer epochs; promises name tests that exist."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="an installed package has no README beside it")
def test_the_code_in_the_readme_runs_and_prints_its_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)), names)
    pytest.importorskip("matplotlib.pyplot").close("all")
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("[1/5] training the VAE: epoch") for line in printed)
    scores = [float(line) for line in printed if re.fullmatch(r"0\.\d+", line)]
    promised = float(re.search(r"pipeline.score\(X_turned, y_test\)\) +# (0\.\d+);", text).group(1))
    assert scores == pytest.approx([promised], abs=0.02)  # another processor rounds otherwise
    # One number: the table has it, too.
    assert (
        re.search(r"\| LogisticRegression \| [^|]+\| [^|]+\| \*\*(\.\d+)\*\* \|", text).group(1)
        == f"{promised:.3f}"[1:]
    )
    assert names["T"].shape == (1000, 785)
    assert (tmp_path / "avae.joblib").exists()
    assert (tmp_path / "avae.safetensors").exists()


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
