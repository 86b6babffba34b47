"""Makes HTML from the templates in ``views/templates``. Every value is escaped, so names from data stay text."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

# autoescape=True: jinja2's select_autoescape goes by the ending of a name, which is .j2 here
_ENVIRONMENT = Environment(
    loader=PackageLoader("workbench.views"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def render(template: str, **values: Any) -> str:
    """Returns the HTML of a template.

    Args:
        template: the name of its file, such as ``report.html.j2``.
        values: what the template shows. Strings are escaped; only a ``markupsafe.Markup`` is taken as HTML.

    Raises:
        jinja2.UndefinedError: the template asks for a value that is not there.
    """
    return _ENVIRONMENT.get_template(template).render(values)
