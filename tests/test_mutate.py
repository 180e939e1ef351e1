"""The mutants of `make mutate`: each is a program, and another one than the module itself."""

import ast
from pathlib import Path

import pytest
from mutate import QUICK, ROOT, SLOW, mutants_of, mutated

import sk_avae

SOURCE = (Path(sk_avae.__file__).parent / "model" / "likelihoods.py").read_text()


def test_every_mutant_is_another_program_than_the_module_and_all_others():
    whole, seen = ast.unparse(ast.parse(SOURCE)), set()
    for mutant in mutants_of(SOURCE):
        after, what = mutated(SOURCE, mutant)
        compile(after, "mutant", "exec")
        assert after != whole, what
        seen.add(after)
    assert len(seen) == len(mutants_of(SOURCE)) > 100


@pytest.mark.parametrize(
    ("source", "mutants"),
    [
        ("a < b", {"a <= b", "a >= b"}),
        ("a == b", {"a != b"}),
        ("a - b * c", {"a + b * c", "a - b / c"}),
        ("x = -a", {"x = a"}),
        ("a @ b", {"b @ a"}),
        ("a and not b", {"a or not b", "a and b"}),
        ("if a:\n    f(x, k=b)", {"if not a:\n    f(x, k=b)", "if a:\n    f(x)", "if a:\n    pass"}),
        ("x = [1, 0.5, 0.0, True]", {"x = [2, 0.5, 0.0, True]", "x = [1, 1.0, 0.0, True]", "x = [1, 0.5, 1.0, True]"}),
        ('def f():\n    """Words"""\n    return a', {'def f():\n    """Words"""\n    return'}),
        ("raise ValueError('words')", {"pass"}),
        ("a[0] = b", {"pass", "a[1] = b"}),
    ],
)
def test_mutants_of(source, mutants):
    found = {mutated(source, mutant)[0] for mutant in mutants_of(source)}
    assert found >= mutants
    assert len(found) <= len(mutants) + 1


def test_every_module_of_model_and_search_has_its_tests_and_they_exist():
    package = Path(sk_avae.__file__).parent
    modules = {
        path.relative_to(package).with_suffix("").as_posix()
        for wing in ("model", "search")
        for path in (package / wing).glob("*.py")
        if path.stem != "__init__"
    }
    assert set(QUICK) == set(SLOW) == modules
    for tests in (*QUICK.values(), *SLOW.values()):
        assert all((ROOT / test).is_file() for test in tests)
