"""What is wrong with `--config` and its keys, in one line that names file and line."""

import re
import traceback
from collections.abc import Sequence

from simclr_jax.config import renamed

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_IN_TEXT = "Error whilst parsing config file:"


def explain(error: BaseException, argv: Sequence[str], file: str | None) -> str:
    """The message for an error of a command line with a config.

    Args:
      error: what parsing it raised; config files are programs and can raise anything.
      argv: the command line.
      file: of the config, if there is one.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else ""
    text = text or str(error)
    for hint in (renamed.hint(part) for part in (*argv, text)):
        if hint:
            return hint
    if file is not None:
        place, reason = _in_file(error, text, file)
        if place:
            return f"--config={place}: {_without_fields(reason)}"
    flag = _flag_with_key(text, argv)
    return f"{flag}: there is no such key{_guess(text)}" if flag else text


def is_of_file(error: BaseException, file: str | None) -> bool:
    """Whether the code of a config file raised an error."""
    return file is not None and bool(_lines_in(error, file.partition(".py")[0] + ".py"))


def _lines_in(error: BaseException, name: str) -> list[int | None]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame.lineno for frame in frames if frame.filename == name]


def returned(value: object, file: str) -> str:
    """The message for a file whose `get_config` returned something else."""
    return (
        f"--config={file}: get_config() must return a ConfigDict, not "
        f"{type(value).__name__}"
    )


def _in_file(error: BaseException, text: str, file: str) -> tuple[str, str]:
    """(file and line, what is wrong there); the first is '' for errors of flags."""
    name, _, argument = file.partition(".py")
    name += ".py"
    if _IN_TEXT in text:
        # ml_collections puts a whole traceback into the message.
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"[\w.]+: ", line)]
        reason = (errors or lines)[-1]
        if "get_config() takes" in reason:
            taken = argument.removeprefix(":")
            return name, f"get_config() takes no such argument ({taken!r})"
        numbers = [number for file_, number in _FRAME.findall(text) if file_ == name]
        place = f"{name}, line {numbers[-1]}" if numbers else name
        return place, reason.removeprefix("ValueError: ")
    if isinstance(error, SyntaxError):
        line = "" if error.lineno is None else f", line {error.lineno}"
        return f"{error.filename or name}{line}", str(error.msg)
    if isinstance(error, AttributeError) and "'get_config'" in text:
        return name, "has no function get_config"
    if found := _lines_in(error, name):
        return f"{name}, line {found[-1]}", f"{type(error).__name__}: {text}"
    # A file that is not read as text.
    return (name, text) if "source code" in text else ("", "")


def _without_fields(reason: str) -> str:
    """Without the list of all keys that ml_collections adds."""
    reason = re.sub(r'Other fields present: "\{.*?\}"', "", reason, flags=re.S)
    if "'Key" in reason:
        reason = reason.replace("'Key", "Key").removesuffix("'").replace("\\n", "")
    return re.sub(r"<class '([\w.]+)'>", r"\1", reason)


def _flag_with_key(text: str, argv: Sequence[str]) -> str | None:
    quotes = r"['\"\\]*"
    match = re.match(rf"{quotes}(?:Key )?{quotes}(\w+){quotes}\s*(\\n|$|Did)", text)
    match = match or re.search(r"Attempting to lookup: [\w.]*?(\w+)$", text)
    for argument in argv if match else ():
        flag, _, _ = argument.partition("=")
        if match and match.group(1) in flag.lstrip("-").split(".")[1:]:
            return argument
    return None


def _guess(text: str) -> str:
    match = re.search(r'Did you mean "(\w+)"', text)
    return f"; did you mean {match.group(1)}?" if match else ""
