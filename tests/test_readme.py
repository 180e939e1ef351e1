"""The code in the README runs as it stands, only with fewer epochs; promises name tests that exist."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="an installed package has no README beside it")
def test_the_code_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # As many images as the critic needs to have something to say.
    monkeypatch.setattr("sk_avae.learning.search_models._N_HELD_OUT", 100)
    monkeypatch.setattr("sk_avae.learning.search_models._N_SHOWN", 300)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    code = "\n".join(blocks)
    assert "max_epochs=100" in code
    names = {}
    exec(code.replace("max_epochs=100", "max_epochs=4"), names)
    assert float(capsys.readouterr().out) > 0.6
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
