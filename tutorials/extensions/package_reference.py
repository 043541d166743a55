"""Directives that write the reference from the package itself: exported names, configuration keys, columns of runs."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache

from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

import gammapy_accmaker
from gammapy_accmaker import errors
from gammapy_accmaker.acceptance.run_table import RUN_COLUMNS
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.config.template import option_groups

# what classes take over from pydantic and gammapy is described there
FROM_ELSEWHERE = "model_config, model_fields, model_computed_fields, model_post_init, logger, Config"


class PublicNames(SphinxDirective):
    """Exported names: those given, or with ``rest`` all that no page names."""

    has_content = True
    option_spec = {"rest": directives.flag}
    named: set[str] = set()

    def run(self):
        names = [name for line in self.content for name in line.split()]
        if "rest" in self.options:
            names = [name for name in gammapy_accmaker.__all__ if name not in self.named]
        self.named.update(names)
        text = "\n".join(_as_entry(name) for name in names)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _as_entry(name):
    thing = getattr(gammapy_accmaker, name)
    heading = f"{name}\n{'-' * len(name)}\n\n"
    if not isinstance(thing, type):
        return heading + (f".. autofunction:: gammapy_accmaker.{name}\n" if callable(thing) else f"``{thing!r}``\n")
    return heading + f".. autoclass:: gammapy_accmaker.{name}\n   :members:\n   :exclude-members: {FROM_ELSEWHERE}\n"


class ConfigurationKeys(SphinxDirective):
    """A section for each group of options of `AcceptanceConfig`, with a table of its keys."""

    def run(self):
        return self.parse_text_to_nodes("\n".join(_configuration()), allow_section_headings=True)


def _configuration() -> Iterator[str]:
    for group in option_groups(AcceptanceConfig):
        title = f"``{group.title}``" if group.title else "All keys"
        anchor = re.sub(r"\W+", "-", group.title or "all-keys").strip("-")
        yield f".. _key-{anchor}:\n\n{title}\n{'-' * len(title)}\n\n{group.summary}\n"
        if not group.options:
            continue
        yield ".. list-table::\n   :header-rows: 1\n   :widths: 20 25 55\n"
        yield "   * - key\n     - default\n     - what it says"
        for option in group.options:
            choices = f"One of {', '.join(f'``{choice}``' for choice in option.choices)}." if option.choices else ""
            parts = [option.description, choices]
            yield f"   * - ``{option.key}``\n     - {_literal(option.default)}\n     - {' '.join(filter(None, parts))}"
        yield ""


def _literal(default):
    return f"``{default}``" if default else ""


class RunTableColumns(SphinxDirective):
    """The columns of the run table, their units and what they hold."""

    def run(self):
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 18 8 74", ""]
        lines += ["   * - column", "     - unit", "     - what it holds"]
        for name, column in RUN_COLUMNS.items():
            description = re.sub(r"\bprint\(model\)", "``print(model)``", column.description)
            lines += [f"   * - ``{name}``", f"     - {column.unit or ''}", f"     - {description}"]
        return self.parse_text_to_nodes("\n".join(lines) + "\n")


# a docstring names what is near it; on these pages each is known by its full name
WITH_PAGE = {
    "GroupPlan": "gammapy_accmaker.acceptance.plan.GroupPlan",
    "CrossValidation": "gammapy_accmaker.validation.cross_validation.CrossValidation",
    "Exclusion": "gammapy_accmaker.data.exclusion.Exclusion",
    "RateModel": "gammapy_accmaker.models.base.RateModel",
    "RateModel.rate": "gammapy_accmaker.models.base.RateModel.rate",
    **{name: f"gammapy_accmaker.errors.{name}" for name in errors.__all__},
    **{name: f"gammapy_accmaker.{name}" for name in gammapy_accmaker.__all__},
}


ATTRIBUTES = {"acceptance_maker"}


@cache
def names_of_package() -> set[str]:
    """Modules, what they hold, and the members of their classes."""
    names = set()
    for found in pkgutil.walk_packages(gammapy_accmaker.__path__, "gammapy_accmaker."):
        module = importlib.import_module(found.name)
        names |= {found.name, *vars(module)} | {f"{found.name}.{name}" for name in vars(module)}
        for thing in vars(module).values():
            if isinstance(thing, type) and thing.__module__.startswith("gammapy"):
                fields = {*getattr(thing, "__annotations__", ()), *dir(thing)}
                names |= {f"{thing.__name__}.{field}" for field in fields}
                names |= fields if thing.__module__.startswith("gammapy_accmaker") else set()
    return names


def link_short_names(app, env, node, contnode):
    """A link to what a docstring names without its module; what is inside of the package and has no page is code."""
    name = node.get("reftarget")
    if node.get("refdomain") != "py":
        return None
    if name in WITH_PAGE:
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", WITH_PAGE[name], node, contnode)
    # attributes that are set in `__init__` are known to their documentation alone
    return contnode if name in names_of_package() or name in ATTRIBUTES else None


def setup(app):
    app.connect("missing-reference", link_short_names)
    app.add_directive("public-names", PublicNames)
    app.add_directive("configuration-keys", ConfigurationKeys)
    app.add_directive("run-table-columns", RunTableColumns)
    app.connect("builder-inited", lambda app: PublicNames.named.clear())
    return {"parallel_read_safe": False}
