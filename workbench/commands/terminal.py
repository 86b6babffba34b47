"""Makes text from files safe to print: whatever the terminal cannot show, or would obey, is printed as an escape."""

import re
import sys

# of the control characters only tab and new line are printed as they are; a terminal obeys the others
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""Returns a text with its control characters written out, such as ``\x1b``."""
    return _OBEYED.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def use_escapes() -> None:
    """Makes output of this process that its encoding lacks an escape in place of an error, as in a terminal that knows ASCII alone."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue] - a stream of text has it
