"""The page of bad inputs: what was given, and the one line that came back.

bash launch/test.sh tests/test_bad_inputs.py --bad-inputs-page=docs/bad_inputs.md
"""

from collections.abc import Iterable

_HEADER = """\
# Bad input

What a user can get wrong, and the line that a command ends with: on standard error,
behind `error: `, without a traceback, before a device is used. The exit code is 2 for
input that cannot be used, and 1 for a run that cannot go on. Each row is a test; the
page is what they wrote when run by

```bash
bash launch/test.sh tests/test_bad_inputs.py --bad-inputs-page=docs/bad_inputs.md
```

`DIR` stands for the folder of the test. [fuzzing.md](fuzzing.md) is about damaged files
that nobody thought of.
"""


def page(rows: Iterable[dict[str, str]]) -> str:
    """The page, in Markdown."""
    rows = list(rows)
    lines = [_HEADER]
    for group in dict.fromkeys(row["group"] for row in rows):
        lines += [f"## {group}\n", "| given | error |", "|---|---|"]
        lines += [
            f"| {cell(row['given'])} | {cell(row['message'])} |"
            for row in rows
            if row["group"] == group
        ]
        lines.append("")
    return "\n".join(lines)


def cell(text: str) -> str:
    """A text as Markdown shows it unchanged."""
    for special in "\\|<>[]*~`_":
        text = text.replace(special, f"\\{special}")
    return text
