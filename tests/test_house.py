"""The house: which room may import which, and what is public."""

import ast
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

import sk_avae
import sk_avae.datasets
import sk_avae.inspection
import sk_avae.plotting
import sk_avae.scoring

HOUSE = Path(sk_avae.__file__).parent

# Room, a folder or a file: which rooms it may import, bottom up. Inside a folder files import one another as they need,
# without a circle.
TABLE = {
    "_version": set(),
    "_callers": set(),
    "_versions": set(),
    "_links": set(),
    "callbacks": set(),
    "progress": set(),
    "expert": {"_links"},
    "model": set(),
    "search": {"model"},
    "scaling": set(),
    "images": {"model"},
    "_sizes": {"model", "images"},
    "_frames": set(),
    "report": {"_frames"},
    "result": {"_frames", "model"},
    "_validation": set(),
    "_inputs": {"_callers", "model", "images", "_sizes"},
    "_pictures": {"_callers", "_sizes"},
    "datasets": {"model", "images", "_inputs", "_pictures"},
    "_searched": {"_callers", "model", "search", "images"},
    "aligner": {"model", "search", "images", "report", "result", "progress", "_searched"},
    "aligner_state": {"model", "search", "images", "report", "aligner"},
    "_learned": {"images", "report", "aligner"},
    "_effects": {"_callers", "aligner"},
    "learning": {
        *("_version", "_callers", "callbacks", "progress", "model", "search", "scaling", "images", "report", "aligner"),
    },
    "estimator": {
        *(
            "_version",
            "_links",
            "_callers",
            "_validation",
            "_inputs",
            "_learned",
            "_effects",
            "callbacks",
            "progress",
            "expert",
            "model",
            "search",
        ),
        *("images", "result", "aligner", "aligner_state", "learning"),
    },
    "mixture": set(),
    "_meta": {"_validation", "estimator"},
    "_lessons": {"_validation", "estimator"},
    "canonicalizer": {"_links", "_validation", "_inputs", "_meta", "callbacks", "result"},
    "classifier": {"_links", "_validation", "_inputs", "_lessons", "_meta", "callbacks", "mixture"},
    "persistence": {
        *("_version", "_validation", "expert", "model", "search", "images", "report", "aligner_state", "estimator"),
        "canonicalizer",
    },
    "inspection": {"_validation", "_inputs", "_meta", "model", "search", "images", "result", "datasets", "aligner"},
    # Doors: import paths that are documented, or that old pickles name.
    "affine": {"model"},
    "likelihoods": {"model"},
    "vae": {"model"},
    "alignment": {"result"},
    "scoring": {"inspection"},
    "plotting": {"inspection"},
    "__init__": {
        *("_version", "_versions", "expert", "report", "result", "estimator", "canonicalizer", "classifier"),
        *("persistence", "inspection"),
    },
}
# Importing one of these imports nothing but torch.
PURE = ("model", "search")

FILES = sorted(path.relative_to(HOUSE).with_suffix("").as_posix() for path in HOUSE.rglob("*.py"))


def room_of(file):
    return file.split("/")[0]


def tree_of(file):
    return ast.parse((HOUSE / f"{file}.py").read_text(encoding="utf-8"))


def imports(file, tree=None):
    """Yield the dotted names that a file imports, relative ones from the house on: `model.affine.warp`."""
    package = ["sk_avae", *file.split("/")[:-1]]
    for node in ast.walk(tree or tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            yield from (".".join(filter(None, [*base, node.module, alias.name])) for alias in node.names)


def own_imports(file):
    """Return the files of this package that a file imports."""
    names = (name.removeprefix("sk_avae.").split(".") for name in imports(file) if name.startswith("sk_avae."))
    found = set()
    for parts in names:
        paths = ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]
        found |= set([path for path in paths if path in FILES][:1] or [path for path in paths if is_folder(path)][:1])
    return found


def is_folder(path):
    return (HOUSE / path / "__init__.py").exists()


def foreign_imports(file, tree=None):
    return {name for name in imports(file, tree) if name.split(".")[0] != "sk_avae"}


def at_module_level(tree):
    """Return a tree without the bodies of its functions: what runs on import."""

    class Cut(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return ast.copy_location(ast.Pass(), node)

        visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    return Cut().visit(tree)


def users_of(module):
    """Return the files that import a module of others."""
    return [file for file in FILES if any(f"{name}.".startswith(f"{module}.") for name in foreign_imports(file))]


def test_the_table_goes_downward_only():
    rooms = list(TABLE)
    for position, room in enumerate(rooms):
        assert TABLE[room] <= set(rooms[:position]), room


def test_every_room_has_its_row():
    assert {room_of(file) for file in FILES} == set(TABLE)


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_lies_below(file):
    room = room_of(file)
    above = {other for other in own_imports(file) if room_of(other) not in {room, *TABLE[room]}}
    assert not above, f"{file} imports {sorted(above)}, which do not lie below {room}"


def test_no_circle():
    depends = {file: own_imports(file) - {file} for file in FILES}
    while depends:
        free = {file for file, others in depends.items() if not others & set(depends)}
        assert free, f"a circle among {sorted(depends)}"
        depends = {file: others for file, others in depends.items() if file not in free}


@pytest.mark.parametrize("file", [file for file in FILES if file != "callbacks"])
def test_nothing_of_ours_is_imported_inside_a_function(file):
    on_import = set(imports(file, at_module_level(tree_of(file))))
    late = {name for name in set(imports(file)) - on_import if name.startswith("sk_avae")}
    assert not late, f"{file} imports {sorted(late)} inside a function"


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) in PURE])
def test_model_and_search_are_pure_torch(file):
    foreign = {name.split(".")[0] for name in foreign_imports(file, at_module_level(tree_of(file)))}
    allowed = {"torch", "numpy"} if file == "model/module_state" else {"torch"}  # which turns tensors into arrays
    assert foreign - set(sys.stdlib_module_names) <= allowed


@pytest.mark.parametrize(
    ("module", "rooms"),
    [
        ("skorch", {"learning"}),
        ("safetensors", {"persistence"}),
        ("sklearn.callback", {"callbacks"}),
        ("tqdm", {"progress"}),
        ("joblib", set()),
    ],
)
def test_a_library_has_one_place(module, rooms):
    assert {room_of(file) for file in users_of(module)} == rooms


def test_only_validation_touches_private_helpers_of_scikit_learn():
    def private(name):
        parts = name.split(".")
        return parts[0] == "sklearn" and any(part.startswith("_") and not part.startswith("__") for part in parts)

    users = [file for file in FILES if any(private(name) for name in foreign_imports(file))]
    assert users == ["_validation"]


@pytest.mark.parametrize("file", FILES)
def test_plotting_and_tables_are_imported_where_they_are_used(file):
    names = {name.split(".")[0] for name in imports(file, at_module_level(tree_of(file)))}
    assert not names & {"matplotlib", "pandas", "PIL"}


# ---------------------------------------------------------------- sizes
# Larger than it should be, and why.
LARGE_MODULES = {"estimator": "the documented parameters and methods of one class"}
LARGE_CLASSES = {"AVAEEstimator": "the same"}
MANY_PARAMETERS = {
    "AVAEEstimator.__init__": "scikit-learn's way: a parameter each",
    "RobustnessCurveDisplay.from_estimator": "public since 0.1",
}


def definitions(file, kind):
    """Yield (qualified name, node) of the classes or functions of a file."""
    tree = tree_of(file)
    owners = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, kind):
            owner = owners[node]
            yield f"{owner.name}.{node.name}" if isinstance(owner, ast.ClassDef) else node.name, node


def n_lines(node):
    """Count the lines of a definition without its docstring."""
    first = node.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str)
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if is_text else 0)


def test_modules_are_small():
    large = {file for file in FILES if len((HOUSE / f"{file}.py").read_text(encoding="utf-8").splitlines()) > 450}
    assert large == set(LARGE_MODULES)


def test_classes_are_small():
    classes = chain.from_iterable(definitions(file, ast.ClassDef) for file in FILES)
    large = {name for name, node in classes if node.end_lineno - node.lineno + 1 > 300}
    assert large == set(LARGE_CLASSES)


@pytest.mark.parametrize("file", FILES)
def test_functions_are_small(file):
    functions = dict(definitions(file, ast.FunctionDef))
    large = [name for name, node in functions.items() if n_lines(node) > 60 and name not in MANY_PARAMETERS]
    assert not large
    for name, node in functions.items():
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        wide = len([argument for argument in names if argument not in ("self", "cls")]) > 8
        assert not wide or name in MANY_PARAMETERS, name


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, sk_avae, sk_avae.datasets; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names():
    assert sk_avae.__all__ == [
        *("AVAEEstimator", "AffineCanonicalizer", "AlignmentDisplay", "AlignmentReport", "AlignmentReportDisplay"),
        *("AlignmentResult", "CanonicalizedClassifier"),
        *("ELBOProfileDisplay", "ExpertSettings", "PoseHistogramDisplay", "RobustnessCurveDisplay", "TrainingDisplay"),
        *("load", "save", "show_versions"),
    ]
    assert sk_avae.datasets.__all__ == ["fetch_mnist", "load_images", "load_mnist_sample", "make_perturbed"]
    assert sk_avae.scoring.__all__ == ["cheapest_within_one_se", "elbo", "neg_reconstruction_error", "perturbed"]
    assert sk_avae.plotting.__all__ == sk_avae.inspection.__all__
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
        *("reconstruct", "sample", "score", "score_samples", "transform", "transform_hypotheses", "warp"),
    ]
    assert public_members(sk_avae.CanonicalizedClassifier) == [
        *("decision_function", "fit", "predict", "predict_log_proba", "predict_proba"),
    ]
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
