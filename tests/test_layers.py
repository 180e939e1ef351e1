"""The house: which file may import what, and what is public."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sk_avae
import sk_avae.datasets
import sk_avae.scoring

HOUSE = Path(sk_avae.__file__).parent

CORE = {"affine", "starts", "density", "likelihoods", "vae", "descent", "alignment", "proposer", "critic"}

# File: what it may import of this package, bottom up (section 5 of the design). Of the two that serve the shell,
# `_validation` warps raw pixels, and so reads `affine`; a shell file may import both.
TABLE = {
    "affine": set(),
    "likelihoods": set(),
    "vae": set(),
    "persistence": set(),
    "starts": {"affine"},
    "density": {"affine", "starts"},
    "descent": set(),
    "alignment": {"affine", "likelihoods", "starts", "density", "descent"},
    "proposer": {"affine", "starts", "vae", "alignment"},
    "critic": {"affine", "starts", "vae", "alignment", "proposer"},
    "joint": {"affine", "starts", "descent", "alignment"},
    "_validation": {"affine"},
    "datasets": {"affine", "_validation"},
    "net": {"affine", "starts", "alignment", "proposer", "critic", "joint"},
    "training": {"starts", "vae", "alignment", "joint", "net", "persistence", "_validation"},
    "choice": {"affine", "starts", "density", "alignment", "proposer", "critic", "net", "persistence"},
    "callbacks": set(),
    "estimator": {*CORE, "training", "choice", "callbacks", "persistence", "_validation"},
    "canonicalizer": {"estimator", "alignment", "callbacks", "_validation"},
    "classifier": {"estimator", "callbacks", "_validation"},
    "plain": set(),
    "schema": {
        *("estimator", "affine", "density", "likelihoods", "vae", "proposer", "critic"),
        *("persistence", "_validation", "plain"),
    },
    "files": {
        *("estimator", "canonicalizer", "likelihoods", "vae", "persistence", "_validation"),
        *("plain", "schema"),
    },
    "scoring": {"_validation"},
    "plotting": {"affine", "alignment", "datasets", "_validation"},
    "__init__": {"alignment", "canonicalizer", "classifier", "estimator", "files", "plotting"},
}

FILES = sorted(path.stem for path in HOUSE.glob("*.py"))


def tree_of(file):
    return ast.parse((HOUSE / f"{file}.py").read_text(encoding="utf-8"))


def imports(tree):
    """Yield each imported name as (level, dotted name): level 0 is absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, ".".join(filter(None, [node.module, alias.name]))) for alias in node.names)


def own_imports(file):
    """Return the files of this package that a file imports."""
    names = {name for level, name in imports(tree_of(file)) if level == 1}
    names |= {name.removeprefix("sk_avae.") for level, name in imports(tree_of(file)) if name.startswith("sk_avae.")}
    return {name.split(".")[0] for name in names if not name.startswith("__")}


def foreign_imports(file):
    return {name for level, name in imports(tree_of(file)) if level == 0 and name.split(".")[0] != "sk_avae"}


def at_module_level(tree):
    """Return a tree without the bodies of its functions: what runs on import."""

    class Cut(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return ast.copy_location(ast.Pass(), node)

        visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    return Cut().visit(tree)


def test_the_table_goes_downward_only():
    files = list(TABLE)
    for position, file in enumerate(files):
        assert TABLE[file] <= set(files[:position]), file


def test_every_file_has_its_row():
    assert set(FILES) <= set(TABLE)
    assert not [path for path in HOUSE.rglob("*.py") if path.parent != HOUSE]


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_lies_below(file):
    assert own_imports(file) <= TABLE[file]


@pytest.mark.parametrize("file", sorted(CORE & set(FILES)))
def test_the_core_is_pure_torch(file):
    foreign = {name for level, name in imports(at_module_level(tree_of(file))) if level == 0}
    outside = {name.split(".")[0] for name in foreign} - set(sys.stdlib_module_names)
    assert outside == {"torch"}


def test_only_net_imports_skorch():
    assert [file for file in FILES if any(name.startswith("skorch") for name in foreign_imports(file))] == ["net"]


def test_only_files_imports_safetensors():
    assert [file for file in FILES if any(name.startswith("safetensors") for name in foreign_imports(file))] == [
        "files"
    ]


def test_only_callbacks_imports_scikit_learns_callbacks():
    users = [file for file in FILES if any(name.startswith("sklearn.callback") for name in foreign_imports(file))]
    assert users == ["callbacks"]


def test_only_validation_touches_private_helpers_of_scikit_learn():
    def private(name):
        parts = name.split(".")
        return parts[0] == "sklearn" and any(part.startswith("_") and not part.startswith("__") for part in parts)

    users = [file for file in FILES if any(private(name) for name in foreign_imports(file))]
    assert users == ["_validation"]


@pytest.mark.parametrize("file", FILES)
def test_plotting_and_tables_are_imported_where_they_are_used(file):
    names = {name.split(".")[0] for _, name in imports(at_module_level(tree_of(file)))}
    assert not names & {"matplotlib", "pandas"}


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, sk_avae, sk_avae.datasets; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names():
    assert sk_avae.__all__ == [
        *("AVAEEstimator", "AffineCanonicalizer", "AlignmentDisplay", "AlignmentResult", "CanonicalizedClassifier"),
        *("ELBOProfileDisplay", "PoseHistogramDisplay", "RobustnessCurveDisplay", "TrainingDisplay"),
        *("load", "save"),
    ]
    assert sk_avae.datasets.__all__ == ["fetch_mnist", "load_mnist_sample", "make_perturbed"]
    assert sk_avae.scoring.__all__ == ["cheapest_within_one_se", "elbo", "neg_reconstruction_error"]
    assert set(sk_avae.plotting.__all__) == {name for name in sk_avae.__all__ if name.endswith("Display")}
    for module in (sk_avae, sk_avae.datasets, sk_avae.scoring):
        assert all(hasattr(module, name) for name in module.__all__)


def public_members(cls):
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    # scikit-learn writes a `set_<method>_request` into each class.
    own = (name for name in vars(cls) if not name.startswith("_") and not name.endswith("_request"))
    return sorted(name for name in own if name not in inherited)


def test_public_methods():
    assert public_members(sk_avae.AVAEEstimator) == [
        *("align", "decode", "encode", "fit", "from_vae", "get_feature_names_out"),
        *("inverse_transform", "negative_elbo", "partial_fit", "perturb"),
        *("reconstruct", "sample", "score", "score_samples", "transform", "transform_hypotheses"),
    ]
    assert public_members(sk_avae.CanonicalizedClassifier) == ["fit", "predict", "predict_proba"]
    assert public_members(sk_avae.AffineCanonicalizer) == [
        *("align", "fit", "get_feature_names_out", "inverse_transform", "transform"),
    ]


@pytest.mark.parametrize("name", sk_avae.__all__)
def test_public_members_are_documented(name):
    public = getattr(sk_avae, name)
    assert public.__doc__
    members = public_members(public) if isinstance(public, type) else []
    assert not [
        member for member in members if callable(getattr(public, member)) and not getattr(public, member).__doc__
    ]
