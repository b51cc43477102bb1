"""The page: templates, and what must be escaped where.

Names of classes, files and runs may hold any characters. Templates escape what HTML
would obey, `script_json` what a script's end would, and `names.plot_label` what Plotly
would, which reads tags and entities in labels.
"""

import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from simclr_jax.data import optional
from simclr_jax.errors import ConfigError, printable_lines
from simclr_jax.report.sections import Section

_FOLDER = pathlib.Path(__file__).parent / "templates"
# Style sheets in the page, in their order; those that are there.
_STYLES = ("page.css", "representation.css")
_SCRIPTS = ("report.js",)


def render(context: Mapping[str, Any]) -> str:
    """The page as HTML, with everything that it needs in it.

    Args:
      context: what `templates/page.html` gets.

    Raises:
      ConfigError: Jinja2 or Plotly is not installed.
    """
    check_libraries()
    markup = _markup()
    return (
        _environment()
        .get_template("page.html")
        .render(
            **context,
            styles=markup(_joined(_STYLES)),
            scripts=markup(_joined(_SCRIPTS)),
            plotly_js=markup(_plotly_js()),
        )
    )


def _joined(names: tuple[str, ...]) -> str:
    files = [_FOLDER / name for name in names]
    return "\n".join(path.read_text() for path in files if path.exists())


def render_section(section: Section) -> Any:
    """A section as HTML, safe to be put into the page."""
    template = _environment().get_template(section.template)
    return _markup()(template.render(**section.data))


def script_json(value: Any) -> Any:
    r"""A value as JSON for the inside of a script tag.

    Numbers that are not finite become null. Characters with which a tag, a comment or
    an entity could begin are written as `\uNNNN`, as are all that are not ASCII.
    """
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _markup()(text)


def check_libraries() -> None:
    """Raises ConfigError unless all that a page needs is installed."""
    for package in ("jinja2", "plotly"):
        if not optional.is_installed(package):
            raise ConfigError(
                optional.install_hint("the report", package, extra="report")
            )


def _plotly_js() -> str:
    """The source of Plotly's script."""
    from plotly import offline  # only this command needs it

    # Nothing in it may end the tag that it is in.
    return offline.get_plotlyjs().replace("</script", "<\\/script")


def _markup() -> Any:
    """The class of texts that are HTML already."""
    from markupsafe import Markup

    return Markup


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["script_json"] = script_json
    environment.globals["render_section"] = render_section
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment


def _shown(value: Any) -> Any:
    """Texts from data without control characters and marks that turn a line."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable_lines(value)
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
