"""The structure of the package, from its source: layers, sizes, forbidden calls, effects of import."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "jaxmixed"

# A module imports modules of its own layer and of lower ones. A new module is registered here.
LAYERS = {
    "_types": 0,
    "errors": 0,
    "relatedness": 0,
    "later": 0,
    "precision": 1,
    "programs": 1,
    "sizes": 2,
    "linalg": 2,
    "covariance": 2,
    "supports": 2,
    "autocorrelations": 2,
    "residual_family": 2,
    "lag_families": 2,
    "label_families": 2,
    "residual_families": 2,
    "residual_covariance": 2,
    "kernel_covariance": 2,
    "toeplitz": 2,
    "kernels": 2,
    "links": 3,
    "root": 3,
    "coordinates": 3,
    "statistics": 3,
    "layout": 3,
    "frequencies": 3,
    "linking": 3,
    "basis": 3,
    "patterns": 3,
    "crossproducts": 3,
    "groupsums": 3,
    "residual_groups": 3,
    "residual_root": 3,
    "residual_statistics": 3,
    "residual_pass": 3,
    "responses": 3,
    "likelihood": 3,
    "optim": 4,
    "pseudo_likelihood": 5,
    "effects": 5,
    "prediction_slopes": 5,
    "prediction_df": 5,
    "recursion": 5,
    "sparse_rows": 5,
    "prediction_error": 5,
    "case_derivatives": 5,
    "inference": 5,
    "interval_scales": 5,
    "residual_starts": 5,
    "residual_forecasts": 5,
    "residual_whitening": 5,
    "correlated_refits": 5,
    "residual_inference": 5,
    "residual_limits": 5,
    "nn": 5,
    "multiplicity": 5,
    "simultaneous": 5,
    "intervals": 5,
    "proportions": 5,
    "draws": 5,
    "estimates": 5,
    "starts": 5,
    "curvature": 5,
    "profile_constraints": 5,
    "profile_likelihood": 5,
    "profile_search": 5,
    "profile_paths": 5,
    "search": 5,
    "solution": 5,
    "diagnosis": 5,
    "optimality": 5,
    "multistart": 5,
    "schedule": 5,
    "lanes": 5,
    "many_estimates": 5,
    "many_denominators": 5,
    "refits": 5,
    "subdesigns": 5,
    "reductions": 5,
    "removal": 5,
    "missingness": 5,
    "fitting": 5,
    "_distributions": 5,
    "denominators": 5,
    "robust_residuals": 5,
    "robust": 5,
    "chi_bar_square": 5,
    "residual_variation": 5,
    "variation": 5,
    "replicated_effects": 5,
    "_tokens": 6,
    "formula": 6,
    "terms": 6,
    "residuals": 6,
    "residual_text": 6,
    "stata_tokens": 6,
    "stata_syntax": 6,
    "stata_formats": 6,
    "stata_trees": 6,
    "ingest": 7,
    "grouping": 7,
    "relationship": 7,
    "contrasts": 7,
    "transforms": 7,
    "encoding": 7,
    "design_slopes": 7,
    "row_arguments": 7,
    "residual_columns": 7,
    "sampling": 7,
    "frame": 7,
    "response_columns": 7,
    "datasets": 7,
    "files": 7,
    "stata_frame": 7,
    "stata_factors": 7,
    "stata_functions": 7,
    "stata_expressions": 7,
    "stata_design": 7,
    "formatting": 8,
    "comparison": 8,
    "certificate_advice": 8,
    "certificate": 8,
    "equations": 8,
    "report": 8,
    "report_words": 8,
    "residual_nesting": 8,
    "nesting": 8,
    "boundary": 8,
    "model_table": 8,
    "design_df": 8,
    "icc": 8,
    "variance_parts": 8,
    "variance_explained": 8,
    "design_effects": 8,
    "collinearity": 8,
    "margins": 8,
    "reference_grid": 8,
    "contrast_families": 8,
    "marginal_means": 8,
    "emmeans": 8,
    "nonlinear": 8,
    "weighted_samples": 8,
    "results": 8,
    "fitted": 8,
    "fixed_inference": 8,
    "coefficient_names": 8,
    "linear_expressions": 8,
    "linear_tests": 8,
    "anova": 8,
    "robust_inference": 8,
    "testing": 8,
    "marginal": 8,
    "predict": 8,
    "predicting": 8,
    "predictions": 8,
    "residual_kinds": 8,
    "residual_predictions": 8,
    "residual_refusals": 8,
    "row_combinations": 8,
    "wcorrelation": 8,
    "residual_frame": 8,
    "residual_tables": 8,
    "residual_checks": 8,
    "residual_identifiability": 8,
    "group_effects": 8,
    "parameters": 8,
    "replicates": 8,
    "replication": 8,
    "nulls": 8,
    "bootstrap": 8,
    "resampling": 8,
    "checking": 8,
    "plot_influence": 8,
    "influence": 8,
    "influence_measures": 8,
    "deletion": 8,
    "parameter_values": 8,
    "plots": 8,
    "plot_style": 8,
    "plot_effects": 8,
    "plot_residuals": 8,
    "plot_qq": 8,
    "plot_correlations": 8,
    "plot_margins": 8,
    "plot_diagnostics": 8,
    "checking_plots": 8,
    "envelopes": 8,
    "residual_correlation": 8,
    "row_values": 8,
    "plot_ranks": 8,
    "plot_shrinkage": 8,
    "plot_trajectories": 8,
    "trajectories": 8,
    "group_plots": 8,
    "ranking": 8,
    "comparing": 8,
    "comparison_intervals": 8,
    "profiles": 8,
    "residual_profiles": 5,
    "profile_plots": 8,
    "tables": 8,
    "announcements": 8,
    "many_tables": 8,
    "many_comparison": 8,
    "many_results": 8,
    "many_fits": 8,
    "streaming": 8,
    "document": 8,
    "resizing": 8,
    "hypotheses": 8,
    "power_grid": 8,
    "power_plots": 8,
    "power_results": 8,
    "regressor_inputs": 8,
    "stata_session": 8,
    "stata_data": 8,
    "stata_egen": 8,
    "stata_describe": 8,
    "stata_tables": 8,
    "stata_levels": 8,
    "stata_variances": 8,
    "stata_matrices": 8,
    "stata_parameters": 8,
    "stata_predict": 8,
    "stata_graphs": 8,
    "stata_writing": 8,
    "model": 9,
    "model_arrays": 9,
    "simulation": 9,
    "studies": 9,
    "power_analysis": 9,
    "many": 9,
    "regressor": 9,
    "stata_model": 9,
    "stata_mixed": 9,
    "stata_linear": 9,
    "stata_panels": 9,
    "stata_estat": 9,
    "stata_estimates": 9,
    "stata_tests": 9,
    "stata_margins": 9,
    "stata_contrasts": 9,
    "stata_commands": 9,
    "stata_notation": 9,
    "cli": 9,
    "__init__": 9,
    "__main__": 9,
}
FORMULA_LAYER, FRAME_LAYER = 6, 7

# What a layer may import from outside the standard library.
THIRD_PARTY = {
    0: {"jax", "numpy"},  # the two kinds of array that _types names
    1: {"jax", "jaxlib", "jaxtyping", "numpy"},
    2: {"jax", "jaxtyping", "numpy"},
    3: {"jax", "jaxtyping", "numpy"},
    4: {"jax", "jaxtyping", "numpy", "optax"},
    5: {"jax", "jaxtyping", "numpy", "scipy", "tqdm"},
    6: set(),
    7: {"numpy", "pandas", "narwhals", "scipy"},
    8: {"jax", "jaxtyping", "numpy", "pandas", "scipy", "jinja2", "matplotlib", "narwhals"},
    9: {"jax", "jaxtyping", "numpy", "pandas", "matplotlib", "narwhals", "sklearn"},
}
# Slow to import or optional: only inside the functions that need them.
LAZY = {"matplotlib", "jinja2"} | {"scipy", "optax", "narwhals", "polars", "pyarrow", "openpyxl"}
LAZY |= {"sklearn", "tqdm"}
# `import jaxmixed` imports nothing: its names, and what they need, are loaded when they are first used.
# The estimator's module is itself loaded at its first use.
LAZY_IN = {"__init__": LAZY | {"numpy"}, "regressor": LAZY - {"sklearn"}}

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
LONG_FUNCTIONS: set[str] = set()  # "module.function", one loop of an optimiser at most


def module_of(path: Path) -> str:
    """Top-level module (or subpackage) of the package that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@cache
def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def code_files() -> list[Path]:
    return [
        p
        for folder in ("jaxmixed", "tests", "benchmarks", "examples")
        for p in sorted((ROOT / folder).rglob("*.py"))
    ]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imported_names(path: Path) -> list[tuple[str, ast.stmt]]:
    """Absolute dotted names imported anywhere in a file, with the statements."""
    found: list[tuple[str, ast.stmt]] = []
    package = ("jaxmixed", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            if module == "jaxmixed":  # from jaxmixed import frame
                found += [(f"jaxmixed.{alias.name}", node) for alias in node.names]
            else:
                found.append((module, node))
    return found


def internal_imports(path: Path) -> set[str]:
    modules = {module_of(source) for source in sources()}
    names = {name.split(".")[1] for name, _ in imported_names(path) if name.startswith("jaxmixed.")}
    return {name if name in modules else "__init__" for name in names} - {module_of(path)}


def statements_in_functions(tree: ast.Module) -> set[ast.AST]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return {inner for node in ast.walk(tree) if isinstance(node, functions) for inner in ast.walk(node)}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
class TestEachModule:
    def test_it_belongs_to_a_layer(self, path):
        assert module_of(path) in LAYERS, "register the module in LAYERS and in CONTRIBUTING.md"

    def test_it_imports_only_its_own_layer_and_lower_ones(self, path):
        layer = LAYERS[module_of(path)]
        higher = {name: LAYERS[name] for name in internal_imports(path) if LAYERS[name] > layer}
        assert not higher, f"layer {layer} imports upwards: {higher}"

    def test_strings_and_data_frames_know_nothing_of_kernels(self, path):
        layer = LAYERS[module_of(path)]
        if layer not in (FORMULA_LAYER, FRAME_LAYER):
            return
        kernels = {name for name in internal_imports(path) if 0 < LAYERS[name] < FORMULA_LAYER}
        assert not kernels

    def test_it_imports_only_the_libraries_of_its_layer(self, path):
        allowed = THIRD_PARTY[LAYERS[module_of(path)]] | {"jaxmixed"} | set(sys.stdlib_module_names)
        foreign = {name.split(".")[0] for name, _ in imported_names(path)} - allowed
        optional = {"polars", "pyarrow", "openpyxl"} if LAYERS[module_of(path)] >= FRAME_LAYER else set()
        assert foreign <= optional

    def test_slow_libraries_are_imported_in_functions_and_others_at_the_top(self, path):
        tree = parse(path)
        inside = {id(node) for node in statements_in_functions(tree)}
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        # ids differ between parses: compare by position.
        position = {
            (n.lineno, n.col_offset): id(n)
            for n in ast.walk(tree)
            if isinstance(n, ast.Import | ast.ImportFrom)
        }
        for name, statement in imported_names(path):
            node = position[statement.lineno, statement.col_offset]
            library = name.split(".")[0]
            if library in LAZY_IN.get(module_of(path), LAZY):
                assert node in inside | typing_only, (
                    f"{name} is imported at the top (line {statement.lineno})"
                )
            else:
                assert node not in inside, f"{name} is imported in a function (line {statement.lineno})"

    def test_it_never_runs_text_or_loads_pickles(self, path):
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Call):
                continue
            called, line = ast.unparse(node.func), node.lineno
            assert called not in {"eval", "exec", "compile", "__import__"}, f"{called} on line {line}"
            assert not re.fullmatch(
                r"(pickle|cloudpickle|dill|marshal|joblib)\.\w+|\w+\.read_pickle", called
            ), line
            assert not called.endswith((".eval", ".query")), f"evaluates text on line {line}"
            if called in {"getattr", "setattr", "hasattr"}:
                assert isinstance(node.args[1], ast.Constant), f"{called} of a computed name on line {line}"
            unpickles = [
                k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"
            ]
            assert not unpickles, line

    def test_it_never_changes_the_configuration_of_jax(self, path):
        assert "config.update" not in path.read_text(encoding="utf-8")


def test_the_layers_are_those_of_the_contributors_guide():
    table = [
        line.split("|")[1:3]
        for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d ", line)
    ]
    documented = {name: int(layer) for layer, names in table for name in re.findall(r"`(\w+)`", names)}
    assert documented == {name: layer for name, layer in LAYERS.items() if name != "__main__"}


def test_what_is_imported_later_is_imported_for_the_type_checker():
    blocks = [
        node
        for path in sources()
        for node in parse(path).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and node.orelse
    ]
    assert blocks
    for block in blocks:
        typed = [
            f"{name.name} = later('{statement.module.removeprefix('jaxmixed.')}', '{name.name}')"
            for statement in block.body
            if isinstance(statement, ast.ImportFrom)
            for name in statement.names
        ]
        assert {ast.unparse(statement) for statement in block.orelse} <= set(typed)


def test_imports_have_no_cycle():
    graph: dict[str, set[str]] = {}
    for path in sources():
        graph.setdefault(module_of(path), set()).update(internal_imports(path))
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the cycle
    assert set(order) == set(graph)


@pytest.mark.parametrize("path", code_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and f"{path.stem}.{node.name}" not in LONG_FUNCTIONS
        ):
            assert code_lines(node) <= MAX_FUNCTION_LINES, f"{node.name}, line {node.lineno}"


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which has its own duties."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_no_file_names_a_place_on_somebodys_machine():
    places = re.compile(
        "|".join(["/" + "work/", "/" + "root/", "/" + r"home/\w", "/" + r"Users/\w", "/" + "tmp/v11"])
    )
    names = [
        "*.md",
        "*.toml",
        "LICENSE",
        ".gitignore",
        ".ci/*",
        "*.py",
        "*.R",
        "*.json",
        "*.csv",
        "*.txt",
        "*.toml",
    ]
    for folder in (".", ".ci", "jaxmixed", "tests", "benchmarks", "examples"):
        for pattern in names:
            for path in (ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern):
                if path.is_file():
                    assert not places.search(path.read_text(encoding="utf-8")), path.relative_to(ROOT)


def run_python(code: str) -> dict:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_leaves_the_configuration_of_jax_alone():
    found = run_python(
        "import json, jax\n"
        "before = {k: repr(v) for k, v in jax.config.values.items()}\n"
        "import jaxmixed\n"
        "after = {k: repr(v) for k, v in jax.config.values.items()}\n"
        "print(json.dumps({k: [before.get(k), after[k]] for k in after if after[k] != before.get(k)}))\n"
    )
    assert found == {}


ON_DEMAND = {"anova", "bootstrap", "emmeans", "margins", "profiles", "robust_inference"}
"""Some modules that a fit and its table do not need."""


def test_import_loads_nothing_that_a_fit_does_not_need_and_starts_no_backend():
    found = run_python(
        "import json, sys, jax, pandas\n"
        "before = set(sys.modules)\n"
        "import jaxmixed; jaxmixed.mixed\n"
        "from jax._src import xla_bridge\n"
        "new = {m for m in set(sys.modules) - before}\n"
        "print(json.dumps({'new': sorted(new), 'backends': sorted(xla_bridge._backends)}))\n"
    )
    slow = ("matplotlib", "scipy", "optax", "polars", "pyarrow", "narwhals", "openpyxl", "sklearn", "IPython")
    assert not [m for m in found["new"] if m.startswith(slow)]
    assert not {f"jaxmixed.{name}" for name in ON_DEMAND} & set(found["new"])
    assert found["backends"] == []
