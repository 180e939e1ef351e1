"""Mutation testing: change one thing in a module, and see whether a test notices.

`make mutate` draws mutants of the modules of `model/` and `search/` by a seed, runs the tests that know the module on
each, in a copy of the tree, and prints what was noticed and what was not. A mutant that only takes for ever counts as
noticed.

A mutant is one change to the syntax tree:

- a comparison becomes its neighbour (``<``: ``<=``) or its opposite (``>=``);
- an operator becomes another (``+``: ``-``, ``*``: ``/``, ``&``: ``|``), a sign or a ``not`` is dropped, a matrix
  product is turned round;
- ``and`` becomes ``or``, a condition its opposite;
- a number becomes one more, or twice as much, True becomes False, a word another one;
- a keyword argument is left out, a value is not returned, a statement (``raise``, ``continue``, a call, an assignment
  to a part) is skipped.

Docstrings, annotations and the texts of messages are left alone.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("sk_avae", "tests", "pyproject.toml")
# Imported once, before a process is forked for each mutant: what the tests need but the package itself.
PRELOADED = ("torch", "numpy", "pandas", "scipy.ndimage", "sklearn.pipeline", "skorch", "pytest")
# The tests of each module; a mutant that survives these meets those of the modules that use it, too.
QUICK = {
    "model/affine": ("sk_avae/model/affine.py", "tests/model/test_affine.py"),
    "model/avae": ("tests/model/test_avae.py",),
    "model/batches": ("tests/model/test_batches.py",),
    "model/contexts": ("sk_avae/model/contexts.py", "tests/model/test_contexts.py"),
    "model/faults": ("sk_avae/model/faults.py", "tests/model/test_faulty_pixels.py"),
    "model/exposure": ("tests/model/test_exposure.py",),
    "model/frame": ("sk_avae/model/frame.py", "tests/model/test_frame.py"),
    "model/noise": ("tests/model/test_noise.py",),
    "model/resampling": ("sk_avae/model/resampling.py", "tests/model/test_resampling.py"),
    "model/critic": ("sk_avae/model/critic.py", "tests/model/test_critic_network.py"),
    "model/polar": ("sk_avae/model/polar.py", "tests/model/test_polar.py"),
    "model/likelihoods": ("sk_avae/model/likelihoods.py", "tests/model/test_likelihoods.py"),
    "model/module_state": ("tests/model/test_module_state.py",),
    "model/moments": ("tests/model/test_moments.py",),
    "model/prior": ("sk_avae/model/prior.py", "tests/model/test_prior.py"),
    "model/shape_density": ("sk_avae/model/shape_density.py", "tests/model/test_shape_density.py"),
    "model/vae": ("sk_avae/model/vae.py", "tests/model/test_vae.py"),
    "search/align": ("tests/search/test_align.py",),
    "search/certainty": ("tests/search/test_certainty.py",),
    "search/descent": ("tests/search/test_descent.py",),
    "search/find": ("tests/search/test_find.py",),
    "search/objective": ("tests/search/test_objective.py",),
    "search/proposer": ("sk_avae/search/proposer.py", "tests/search/test_proposer.py"),
    "search/screening": ("tests/search/test_screening.py",),
    "search/settings": ("sk_avae/search/settings.py", "tests/search/test_settings.py"),
    "search/starting_poses": ("sk_avae/search/starting_poses.py", "tests/search/test_starting_poses.py"),
}
_MODEL = ("tests/model/test_avae.py", "tests/test_numerics.py", "tests/test_from_vae.py")
_SEARCH = ("tests/search/test_align.py", "tests/test_numerics.py")
_IMAGES = ("tests/test_images_as_they_come.py",)
SLOW = {
    "model/affine": ("tests/test_reflection.py", "tests/test_padding.py", "tests/test_datasets.py"),
    "model/avae": _SEARCH,
    "model/batches": _SEARCH,
    "model/contexts": ("sk_avae/model/contexts.py", "tests/model/test_contexts.py"),
    "model/faults": ("sk_avae/model/faults.py", "tests/model/test_faulty_pixels.py"),
    "model/exposure": _IMAGES,
    "model/frame": _IMAGES,
    "model/noise": _IMAGES,
    "model/resampling": ("tests/test_padding.py", *_IMAGES),
    "model/critic": ("tests/test_reflection.py",),
    "model/polar": ("tests/test_reflection.py",),
    "model/likelihoods": _MODEL,
    "model/module_state": ("tests/persistence/test_pickles.py",),
    "model/moments": ("tests/search/test_starting_poses.py", "tests/model/test_shape_density.py"),
    "model/prior": ("tests/model/test_avae.py", *_SEARCH),
    "model/shape_density": ("tests/test_reflection.py",),
    "model/vae": _MODEL,
    "search/align": ("tests/test_numerics.py", "tests/test_reflection.py"),
    "search/certainty": ("tests/search/test_align.py", "tests/test_reflection.py"),
    "search/find": _IMAGES,
    "search/descent": _SEARCH,
    "search/objective": _SEARCH,
    "search/proposer": ("tests/test_reflection.py",),
    "search/screening": _SEARCH,
    "search/settings": ("tests/search/test_align.py",),
    "search/starting_poses": _SEARCH,
}

NEIGHBOURS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}


_SHOWN = 40
# Exit statuses of a test run that says nothing: it saw another package than the copy, or did not begin.
_ELSEWHERE, _BROKEN = 70, 71


class Mutant(NamedTuple):
    """A change to a node, the n-th of the tree: how it is done, and where it is."""

    place: int
    change: Callable[[Any], Any]
    line: int


def _set(**values: Any) -> Callable[[Any], Any]:
    def change(node: Any) -> Any:
        for name, value in values.items():
            setattr(node, name, value)
        return node

    return change


def _swapped(first: str, second: str) -> Callable[[Any], Any]:
    return lambda node: _set(**{first: getattr(node, second), second: getattr(node, first)})(node)


def _without(i: int) -> Callable[[Any], Any]:
    def change(node: Any) -> Any:
        del node.keywords[i]
        return node

    return change


def _negated(node: Any) -> Any:
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return node


def _other_constants(value: Any) -> Iterator[Any]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, float):
        yield 2 * value if value else 1.0
    elif isinstance(value, str):
        yield f"{value}X"


def changes(node: ast.AST) -> Iterator[Callable[[Any], Any]]:
    """Yield every change to one node."""
    match node:
        case ast.Compare():
            for i, operator in enumerate(node.ops):
                for other in NEIGHBOURS[type(operator)]:
                    yield _set(ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
        case ast.BinOp(op=ast.MatMult()):
            yield _swapped("left", "right")
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign():
            for other in NEIGHBOURS.get(type(node.op), ()):
                yield _set(op=other())
        case ast.UnaryOp():
            yield lambda node: node.operand
        case ast.Constant():
            for value in _other_constants(node.value):
                yield _set(value=value)
        case ast.If() | ast.IfExp() | ast.While():
            yield _negated
        case ast.Call():
            for i in range(len(node.keywords)):
                yield _without(i)
        case ast.Return(value=ast.AST()):
            yield _set(value=None)
        case ast.Raise() | ast.Continue() | ast.Expr(value=ast.Call()):
            yield lambda _: ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield lambda _: ast.Pass()


def _left_alone(tree: ast.AST) -> set[int]:
    """Return the ids of the nodes in docstrings, annotations and messages."""
    parts: list[Any] = []
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                parts.append(node)
            case ast.arg() | ast.AnnAssign():
                parts.append(node.annotation)
            case ast.FunctionDef():
                parts += [node.returns, *node.decorator_list]
            case ast.JoinedStr():
                parts.append(node)
            case ast.Raise(exc=ast.Call()):
                parts += node.exc.args
    return {id(inner) for part in parts if part is not None for inner in ast.walk(part)}


def mutants_of(source: str) -> list[Mutant]:
    """Return every mutant of a module's source, in the order of its lines."""
    tree = ast.parse(source)
    alone = _left_alone(tree)
    found, line = [], 1
    for place, node in enumerate(ast.walk(tree)):
        line = getattr(node, "lineno", line)
        if id(node) not in alone:
            found += [Mutant(place, change, line) for change in changes(node)]
    return sorted(found, key=lambda mutant: mutant.line)


class _Change(ast.NodeTransformer):
    def __init__(self, node: ast.AST, change: Callable[[Any], Any]) -> None:
        self.node, self.change = node, change

    def visit(self, node: ast.AST) -> Any:
        return self.change(node) if node is self.node else self.generic_visit(node)


def mutated(source: str, mutant: Mutant) -> tuple[str, str]:
    """Return the source with the change, and its line before and after as a text."""
    tree = ast.parse(source)
    before = ast.unparse(tree).splitlines()
    node = next(node for place, node in enumerate(ast.walk(tree)) if place == mutant.place)
    after = ast.unparse(ast.fix_missing_locations(_Change(node, mutant.change).visit(tree)))
    old, new = _difference(before, after.splitlines())
    return after, f"`{old}` became `{new}`"


def _difference(before: list[str], after: list[str]) -> tuple[str, str]:
    """Return the lines in which two texts differ, each as one line."""
    first = next(i for i, (old, new) in enumerate(zip([*before, ""], [*after, ""], strict=False)) if old != new)
    last = 0
    while last < min(len(before), len(after)) - first and before[-1 - last] == after[-1 - last]:
        last += 1
    old, new = (" ".join(line.strip() for line in lines[first : len(lines) - last]) for lines in (before, after))
    # Of a long line what is around the change.
    start = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    cut = max(0, start - _SHOWN) if len(old) > 3 * _SHOWN else 0
    return _shortened(old, cut), _shortened(new, cut) if new else "nothing"


def _shortened(text: str, cut: int) -> str:
    shown = text[cut : cut + 2 * _SHOWN] if cut or len(text) > 3 * _SHOWN else text
    return f"{'...' if cut else ''}{shown}{'...' if cut + len(shown) < len(text) else ''}"


def noticed(copy_of_tree: Path, tests: list[str], timeout: float, log: Path) -> bool:
    """Run tests in a forked process in the copy; return whether one failed, or took too long."""
    child = os.fork()
    if not child:
        try:
            os.setsid()
            with log.open("wb") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            os.chdir(copy_of_tree)
            sys.path.insert(0, str(copy_of_tree))
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
            found = Path(sys.modules["sk_avae"].__file__ or "") if "sk_avae" in sys.modules else copy_of_tree / "none"
            os._exit(code if found.is_relative_to(copy_of_tree) else _ELSEWHERE)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(_BROKEN)  # a child must never go on with the parent's work
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            if code in (_ELSEWHERE, _BROKEN):
                raise RuntimeError(f"The tests did not run on {copy_of_tree}:\n{log.read_text()[-3000:]}")
            return code != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def run(module: str, drawn: list[int], folder: Path, slow: bool) -> list[str]:
    """Try some of a module's mutants in a copy of the tree; return what survived."""
    path, log = folder / "sk_avae" / f"{module}.py", folder / "log.txt"
    source = path.read_text()
    everyone = mutants_of(source)
    stages = []
    for names in (QUICK[module], SLOW[module])[: 1 + slow]:
        start = time.monotonic()
        if noticed(folder, [*names], 1800, log):
            raise RuntimeError(f"The tests fail without a mutant:\n{log.read_text()[-3000:]}")
        stages.append(([*names], 30 + 3 * (time.monotonic() - start)))
    survivors = []
    for number in drawn:
        after, what = mutated(source, everyone[number])
        path.write_text(after)
        killed = any(noticed(folder, tests, timeout, log) for tests, timeout in stages)
        where = f"{module}.py:{everyone[number].line}, mutant {number}: {what}"
        print("killed  " if killed else "SURVIVED", where, file=sys.stderr, flush=True)
        survivors += [] if killed else [where]
    path.write_text(source)
    return survivors


def _copy_tree(folder: Path) -> None:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=[*QUICK], help=f"of {', '.join(QUICK)}; all by default")
    parser.add_argument("--sample", type=int, default=60, help="mutants per module")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants of one module, instead of a sample")
    parser.add_argument("--quick", action="store_true", help="leave out the slow tests that survivors meet")
    given = parser.parse_args()
    sys.dont_write_bytecode = True  # or a mutant written within the same second would be taken for the one before
    for name in PRELOADED:
        __import__(name)
    rows, survived = [], []
    with tempfile.TemporaryDirectory() as folder:
        _copy_tree(Path(folder))
        for module in given.modules:
            n_all = len(mutants_of((ROOT / "sk_avae" / f"{module}.py").read_text()))
            sample = random.Random(given.seed).sample(range(n_all), min(given.sample, n_all))
            drawn = sorted(sample if given.only is None else given.only)
            survivors = run(module, drawn, Path(folder), not given.quick)
            killed = len(drawn) - len(survivors)
            rows.append(f"| `{module}.py` | {n_all} | {len(drawn)} | {killed} | {100 * killed / len(drawn):.1f} % |")
            survived += survivors
    print("\n| module | mutants | tried | noticed | |\n| --- | --- | --- | --- | --- |", *rows, sep="\n")
    print("\nNot noticed:", *(survived or ["none"]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
