"""Text that a model or a stranger wrote, on a terminal."""

from typing import IO

# Control characters steer a terminal: they are shown as signs. C0 has signs of its own in Unicode, C1 has none.
_SIGNS = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)


def harmless(text: str) -> str:
    """`text` with its control characters as visible signs, but for newlines and tabs."""
    return text.translate(_SIGNS)


def write(text: str, file: IO[str]) -> None:
    """Writes at once: harmless on a terminal, as it stands into a file or a pipe."""
    file.write(harmless(text) if file.isatty() else text)
    file.flush()
