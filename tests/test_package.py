"""What the package exports, and when it is imported."""

import ast
import importlib
import importlib.metadata
import inspect
import pickle
import subprocess
import sys
from pkgutil import walk_packages

import pytest

import gammapy_accmaker
from gammapy_accmaker import models
from gammapy_accmaker.config import kinds
from gammapy_accmaker.config.types import Options


def run(code, separator=None):
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.strip().split(separator)


def test_exports_are_listed_alike_for_python_and_for_type_checkers():
    tree = ast.parse(inspect.getsource(gammapy_accmaker))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {name.name: statement.module for statement in block.body for name in statement.names}
    lazy = {name: f"gammapy_accmaker.{home}" for name, home in gammapy_accmaker.HOMES.items()}
    assert typed == lazy and sorted(typed) == sorted(gammapy_accmaker.__all__)


@pytest.mark.parametrize("name", gammapy_accmaker.__all__)
def test_export_is_the_object_of_its_module(name):
    found = getattr(gammapy_accmaker, name)
    assert found is getattr(importlib.import_module(found.__module__), name)
    assert found.__module__ == f"gammapy_accmaker.{gammapy_accmaker.HOMES[name]}"
    assert pickle.loads(pickle.dumps(found)) is found


def test_star_import_and_dir_and_packages():
    names = {}
    exec("from gammapy_accmaker import *", names)
    assert set(gammapy_accmaker.__all__) <= set(names)
    assert {*gammapy_accmaker.__all__, "__version__", "errors", "validation"} <= set(dir(gammapy_accmaker))
    assert not {"import_module", "iter_modules", "TYPE_CHECKING"} & set(dir(gammapy_accmaker))
    found = run("import gammapy_accmaker as a; print(a.errors.InputError.__name__, a.validation.__name__)")
    assert found == ["InputError", "gammapy_accmaker.validation"]


def test_version_is_that_of_the_installation():
    assert gammapy_accmaker.__version__ == importlib.metadata.version("gammapy_accmaker")


def test_name_that_does_not_exist_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'AcceptanceMaker'"):
        _ = gammapy_accmaker.AcceptanceMaker
    with pytest.raises(ImportError, match="AcceptanceMaker"):
        exec("from gammapy_accmaker import AcceptanceMaker")


def test_a_model_file_of_any_kind_is_read_where_nothing_else_is_imported():
    for module in walk_packages(models.__path__, f"{models.__name__}."):
        importlib.import_module(module.name)
    kinds = {kind for kind, cls in models.base.MODEL_KINDS.items() if cls.__module__.startswith(models.__name__)}
    found = run("from gammapy_accmaker.acceptance.model import STORED; print('\\n'.join(c.kind for c in STORED))", "\n")
    assert {*found} == kinds >= {"spline", "binned", "parametric", "per run"}


def test_import_of_the_package_does_not_import_gammapy():
    assert run("import sys, gammapy_accmaker as a; print('gammapy' in sys.modules, a.__version__)")[0] == "False"


def test_nobody_above_the_configuration_asks_for_the_kind_of_a_model():
    """What differs between kinds is told by the model or by its options."""
    options = [cls.__name__ for cls in vars(kinds).values() if inspect.isclass(cls) and issubclass(cls, Options)]
    asked = {*options, *models.__all__} - {"ModelOptions", "Options", "RateModel"}
    for package in ("acceptance", "products", "validation", "simulation", "analysis"):
        for module in walk_packages([f"{gammapy_accmaker.__path__[0]}/{package}"], f"gammapy_accmaker.{package}."):
            for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(module.name)))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                    named = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node.args[1])}
                    assert not named & asked, f"{module.name}:{node.lineno}"
                if isinstance(node, ast.Compare) and isinstance(node.comparators[0], ast.Constant):
                    assert not ast.unparse(node.left).endswith("model.type"), f"{module.name}:{node.lineno}"
