"""The house rule: data flow one way, and each room imports only what the table allows (DESIGN section 3)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gammapy_accmaker"

STANDARD = {
    "__future__",
    "abc",
    "concurrent",
    "collections",
    "dataclasses",
    "copy",
    "functools",
    "hashlib",
    "importlib",
    "itertools",
    "json",
    "logging",
    "multiprocessing",
    "operator",
    "os",
    "pathlib",
    "sys",
    "tempfile",
    "time",
    "typing",
    "uuid",
    "warnings",
}
COMMON = {"numpy", "gammapy_accmaker.errors"}
OURS = "gammapy_accmaker."

# room -> what it may import besides COMMON; a prefix allows what is below it
MODELS = {OURS + "binning", OURS + "models", "scipy"}
ALLOWED = {
    "__init__": {OURS + name for name in ("acceptance", "config", "fit", "maker", "validation.cross_validation")},
    "errors": set(),
    "files": set(),
    "hdu_sizes": {"astropy"},
    "parallel": {"gammapy.utils"},
    "cache": {"astropy", "scipy", "gammapy.data", "gammapy.utils", *(OURS + n for n in ("files", "hdu_sizes", "reduction"))},
    "binning": {"astropy.units", "gammapy.maps"},
    "reduction.__init__": set(),
    "reduction.fov": {"astropy", "scipy"},
    "reduction.exclusion": {"astropy", "regions", "scipy", "gammapy.maps", "gammapy.utils", OURS + "reduction.fov"},
    "reduction.counts": {"astropy", "scipy", "gammapy.data", OURS + "binning", OURS + "reduction"},
    "reduction.fingerprint": {"astropy", "scipy", "gammapy.data", "gammapy.maps"},
    "models.__init__": set(),
    "models.base": set(),
    "models.*": MODELS,
    "products.__init__": set(),
    "products.background": {"astropy", "scipy", "regions", "gammapy.maps", OURS + "binning", OURS + "models.base", OURS + "reduction.fov"},
    "products.irf": {"astropy.units", "gammapy.irf", "gammapy.maps", OURS + "models.base", OURS + "products.background", OURS + "reduction.fov"},
    "products.io": {"astropy", OURS + "files", OURS + "hdu_sizes"},
    "products.plots": {"matplotlib", OURS + "models.base"},
    "acceptance": {"astropy", "gammapy.utils", OURS + "models", OURS + "products"},
    "config_types": {"astropy", "pydantic", "gammapy.utils", "gammapy.modeling"},
    "options": {"astropy.units", "pydantic", OURS + "config_types"},
    "config": {"astropy.units", "pydantic", "yaml", "gammapy.utils", *(OURS + n for n in ("config_types", "files", "options"))},
    "runs": {"astropy.units", "gammapy.maps", *(OURS + n for n in ("binning", "cache", "config", "hdu_sizes", "parallel", "reduction"))},
    "fit": {"astropy", *(OURS + n for n in ("acceptance", "binning", "config", "models", "reduction", "runs"))},
    "maker": {"astropy", "gammapy", *(OURS + n for n in ("acceptance", "binning", "config", "fit", "models.base", "models.binned", "products", "reduction", "runs"))},
    "validation.*": {"astropy", "gammapy", "matplotlib", "scipy", *(OURS + n for n in ("binning", "config", "fit", "models.base", "models.stats", "products", "reduction", "runs", "validation"))},
    # the demo's truth, instruments and site, apart from the store that they make
    "demo": {"astropy", "gammapy", "scipy", OURS + "demo_irfs", OURS + "demo_truth"},
    "demo_irfs": {"astropy", "gammapy", "scipy", OURS + "demo_truth"},
    "demo_truth": {"scipy"},
    "showcase": {"astropy", "gammapy", "matplotlib", "regions", *(OURS + n for n in ("binning", "config", "demo", "maker", "reduction", "validation"))},
    "cli": {"click", "gammapy", "matplotlib", *(OURS + n for n in ("showcase",))},
}  # fmt: skip


def rooms():
    return sorted(PACKAGE.rglob("*.py"))


def room_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def allowed_in(room):
    parent = room.rsplit(".", 1)[0] + ".*"
    return ALLOWED.get(room, ALLOWED.get(parent))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            for alias in node.names:
                yield node.module, alias.name


@pytest.mark.parametrize("path", rooms(), ids=room_name)
def test_room_imports_only_what_the_table_allows(path):
    allowed = allowed_in(room_name(path))
    assert allowed is not None, f"{room_name(path)} is no room of the table"
    for module, name in imported(ast.parse(path.read_text())):
        if module.split(".")[0] in STANDARD:
            continue
        full = f"{module}.{name}"
        names = [p for p in allowed | COMMON if full == p or full.startswith(p + ".") or module == p]
        assert names, f"{room_name(path)} imports {full}, which the table does not allow"


@pytest.mark.parametrize("path", rooms(), ids=room_name)
def test_no_star_and_no_private_imports(path):
    for module, name in imported(ast.parse(path.read_text())):
        assert name != "*"
        private = [part for part in f"{module}.{name}".split(".") if part.startswith("_") and not part.startswith("__")]
        assert not private, f"{room_name(path)} imports the private name {module}.{name}"


@pytest.mark.parametrize("path", rooms(), ids=room_name)
def test_no_pickle_no_eval_no_network(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert name not in ("eval", "exec", "from_name", "of_site"), f"{room_name(path)} calls {name}"
        assert not (isinstance(node, ast.Import) and any(a.name == "pickle" for a in node.names))


@pytest.mark.parametrize("path", rooms(), ids=room_name)
def test_one_concept_a_file(path):
    assert len(path.read_text().splitlines()) <= 420
