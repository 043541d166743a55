"""The house rule: data flow one way, and each room imports only what the table allows (DESIGN section 3)."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gammapy_accmaker"

STANDARD = sys.stdlib_module_names
COMMON = {"numpy", *("gammapy_accmaker." + name for name in ("arguments", "errors", "files", "run_key"))}
OURS = "gammapy_accmaker."

# room -> what it may import besides COMMON; a prefix allows what is below it
MODELS = {OURS + "binning", OURS + "models", "scipy"}
ALLOWED = {
    "__init__": {OURS + name for name in ("acceptance", "analysis", "analysis_config", "config", "fit", "maker", "plan", "products.dl3", "reduction.matching", "validation.cross_validation", "workflow")},
    "errors": set(),
    "arguments": set(),
    "run_key": set(),
    "files": {"gammapy.utils"},
    "hdu_sizes": {"astropy"},
    "parallel": {"astropy.utils", "gammapy.utils"},
    "run_files": {"gammapy.utils", OURS + "hdu_sizes", OURS + "reduction"},
    "cache": {"astropy", "scipy", "gammapy.data", "gammapy.utils", *(OURS + n for n in ("files", "hdu_sizes", "reduction", "run_files"))},
    "binning": {"astropy.units", "gammapy.maps"},
    "reduction.__init__": set(),
    "reduction.fov": {"astropy", "scipy"},
    "reduction.site": {"astropy"},
    "reduction.run_notes": {"collections"},
    "reduction.exclusion": {"astropy", "regions", "gammapy.maps", OURS + "reduction"},
    "reduction.exclusion_data": {"astropy", "regions", "gammapy.maps"},
    "reduction.exclusion_parts": {"astropy", "healpy", "regions", "scipy", "gammapy.maps", OURS + "reduction"},
    "reduction.region_files": {"astropy", "regions", "gammapy.utils"},
    "reduction.observations": {"gammapy.data"},
    "reduction.wobble_half": {"astropy", OURS + "reduction"},
    "reduction.counts": {"astropy", "scipy", "gammapy.data", OURS + "binning", OURS + "reduction"},
    "reduction.matching": {"astropy", OURS + "reduction"},
    "reduction.run_conditions": {"astropy", "gammapy.data", OURS + "reduction", OURS + "run_files"},
    "reduction.grouping": {"scipy", OURS + "reduction.fov"},
    "reduction.fingerprint": {"astropy", "scipy", "gammapy.data", "gammapy.maps"},
    "models.__init__": set(),
    "run_table": {"astropy.table"},
    "models.base": {OURS + "binning", OURS + "models.goodness", OURS + "models.norm_energy"},
    "models.parametric_shapes": {"astropy.modeling", OURS + "binning"},
    "models.parametric_function": {"astropy.modeling", "inspect", OURS + "models"},
    "models.parametric_likelihood": MODELS | {"iminuit"},
    "models.*": MODELS,
    "products.__init__": set(),
    "products.background": {"astropy", "scipy", "regions", "gammapy.maps", OURS + "binning", OURS + "models.base", OURS + "reduction.fov"},
    "products.irf": {"astropy.units", "scipy", "gammapy.irf", "gammapy.maps", OURS + "binning", OURS + "models.base", OURS + "products.background", OURS + "reduction.fov"},
    "products.rad_max": {"astropy.units", "gammapy.maps", OURS + "binning", OURS + "models.base", OURS + "products.background", OURS + "reduction.fov"},
    "products.io": {"astropy", OURS + "files", OURS + "hdu_sizes"},
    "products.sky_stack": {"astropy", "scipy", "gammapy.maps", OURS + "models.base", OURS + "products.background", OURS + "reduction"},
    "products.excess": {"astropy", "scipy", "regions", "gammapy.maps", OURS + "products.background", OURS + "products.sky_stack", OURS + "reduction.fov"},
    "acceptance": {"astropy", "regions", "yaml", "gammapy.utils", OURS + "binning", OURS + "config", OURS + "files", OURS + "models", OURS + "plan", OURS + "products", OURS + "reduction", OURS + "run_table"},
    "products.dl3": {"astropy", "gammapy.data", "gammapy.irf", "gammapy.maps", "gammapy.utils", OURS + "files", OURS + "parallel", OURS + "run_files"},
    "products.tables": {"astropy.units", "gammapy.irf", OURS + "models"},
    "products.cubes": {"astropy.units", "scipy", "gammapy.maps", *(OURS + n for n in ("binning", "models", "products.irf"))},
    "products.plots": {"matplotlib", OURS + "models.base", OURS + "products.irf"},
    "config_types": {"astropy", "pydantic", "gammapy.utils", "gammapy.modeling"},
    "options": {"pydantic", OURS + "config_types"},
    "options_model": {"astropy.units", "pydantic", OURS + "config_types", OURS + "models.parametric_function", OURS + "models.parametric_shapes"},
    "options_conditions": {"astropy.units", "pydantic", OURS + "config_types"},
    "options_exclusion": {"astropy.units", "pydantic", OURS + "config_types"},
    "config": {"astropy.units", "pydantic", "yaml", "gammapy.utils", *(OURS + n for n in ("config_errors", "config_types", "files", "options", "options_conditions", "options_exclusion", "options_model"))},
    "runs": {"astropy", "gammapy.maps", *(OURS + n for n in ("binning", "cache", "config", "parallel", "reduction", "run_files"))},
    "plan": {"astropy", "matplotlib", *(OURS + n for n in ("binning", "config", "reduction", "runs"))},
    "fit_groups": {OURS + n for n in ("config", "models", "plan", "reduction")},
    "iterate": {"astropy", *(OURS + n for n in ("acceptance", "config", "models.base", "products", "reduction"))},
    "fit": {"astropy", *(OURS + n for n in ("acceptance", "binning", "config", "fit_groups", "iterate", "models", "options_model", "parallel", "plan", "reduction", "run_table", "runs"))},
    "matched": {"astropy", *(OURS + n for n in ("acceptance", "config", "fit", "models.per_run", "options", "reduction", "runs"))},
    "maker": {"astropy", "gammapy", "regions", *(OURS + n for n in ("acceptance", "binning", "config", "fit", "matched", "models.base", "models.spline_rate", "models.spline_run", "products", "reduction", "run_files", "runs"))},
    "config_errors": {"astropy", "pydantic", "gammapy.utils"},
    "analysis_options": {"pydantic", "gammapy.analysis", "gammapy.utils", OURS + "config", OURS + "config_errors"},
    "analysis_config": {"pydantic", "yaml", "gammapy.analysis", "gammapy.utils", OURS + "analysis_options", OURS + "config_errors"},
    "analysis": {"astropy", "gammapy", "yaml", *(OURS + n for n in ("acceptance", "analysis_config", "analysis_options", "config", "maker"))},
    "workflow": {"gammapy", *(OURS + n for n in ("analysis", "analysis_config", "analysis_options", "maker"))},
    "validation.*": {"astropy", "gammapy", "matplotlib", "scipy", *(OURS + n for n in ("binning", "config", "fit", "models.base", "models.stats", "parallel", "products", "reduction", "run_files", "runs", "validation"))},
    "validation.html": {"matplotlib"},
    "validation.report": {"astropy", "gammapy.utils", *(OURS + n for n in ("acceptance", "binning", "maker", "reduction", "validation"))},
    "validation.report_sections": {OURS + "acceptance", OURS + "reduction", OURS + "config", OURS + "fit", OURS + "products.plots", OURS + "validation"},
    "validation.report_runs": {"astropy.table", OURS + "fit", OURS + "models.goodness", OURS + "run_table", OURS + "validation"},
    # the demo's truth, instruments and site, apart from the store that they make
    "demo": {"astropy", "gammapy", "scipy", OURS + "demo_irfs", OURS + "demo_schedule", OURS + "demo_truth"},
    "demo_schedule": {"astropy", OURS + "demo_irfs"},
    "demo_irfs": {"astropy", "gammapy", "scipy", OURS + "demo_truth"},
    "demo_truth": {"scipy"},
    "showcase": {"astropy", "gammapy", "matplotlib", "regions", *(OURS + n for n in ("binning", "config", "demo", "maker", "reduction", "validation"))},
    "template": {"pydantic", "yaml"},
    "cli_outputs": {"matplotlib", OURS + "validation.pictures"},
    "cli": {"click", "gammapy", "matplotlib", *(OURS + n for n in ("acceptance", "analysis", "analysis_config", "cli_outputs", "config", "files", "plan", "products.dl3", "showcase", "template", "validation"))},
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
    assert len(path.read_text().splitlines()) <= 700
