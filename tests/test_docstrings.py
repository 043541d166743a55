"""What is exported can be read alone: each argument, what is returned, an example; and the examples hold."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path
from pkgutil import walk_packages

import pytest

import gammapy_accmaker

MODULES = [module.name for module in walk_packages(gammapy_accmaker.__path__, "gammapy_accmaker.")]


def sections(text):
    """Sections of a numpydoc docstring by their headings."""
    parts = re.split(r"(?:^|\n)(\w[\w ]*)\n-{3,}\n", inspect.cleandoc(text or ""))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def callables():
    """What users call, by name: exported functions, classes and their methods, as far as they are ours."""
    for name in gammapy_accmaker.__all__:
        found = getattr(gammapy_accmaker, name)
        yield name, found
        for owner in found.__mro__ if inspect.isclass(found) else ():
            if not owner.__module__.startswith("gammapy_accmaker"):
                continue
            for method, value in vars(owner).items():
                value = getattr(value, "__func__", value)
                if not method.startswith("_") and inspect.isfunction(value):
                    yield f"{name}.{method}", value


CALLABLES = dict(reversed([*callables()]))  # of a method that several classes have, that of the lowest


@pytest.mark.parametrize("name", CALLABLES)
def test_docstring_tells_all(name):
    found = CALLABLES[name]
    assert found.__doc__, "no docstring"
    has = sections(found.__doc__)
    assert "Examples" in has and ">>>" in has["Examples"]
    if inspect.isclass(found):
        return
    given = [name for name in inspect.signature(found).parameters if name not in ("self", "cls")]
    told = [arg.strip(" *") for line in re.findall(r"^(\S[^:\n]*)(?: :|$)", has.get("Parameters", ""), re.MULTILINE)
            for arg in line.split(",")]  # fmt: skip
    assert set(given) == set(told)
    if inspect.signature(found).return_annotation not in ("None", None, inspect.Signature.empty):
        assert "Returns" in has


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_no_module_takes_what_is_private_to_another(name):
    tree = ast.parse(Path(importlib.import_module(name).__file__).read_text())
    taken = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert not [one for one in taken if one.startswith("_") and not one.startswith("__")]
