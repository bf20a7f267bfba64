"""Clean-up of one text in any language: Unicode, control characters, and the lines that every web page repeats.

The line and page rules are C4's (Raffel et al. 2020, section 2.2). Those that hold for any language are on; those that
would harm poetry, code or other scripts are options. Mojibake is left as it is: mending it is guesswork.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from gpt_jax.data.curation.documents import Decision

# line ends of all systems; then what has no place in a text: control characters, lone surrogates (which UTF-8 cannot
# even write), byte-order marks, soft hyphens. Joiners, zero-width spaces and direction marks shape scripts and stay.
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]")
_BLANK_LINES = re.compile(r"\n{3,}")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_TERMINAL = tuple(".!?\"'\u2026\u201d\u2019\u00bb\u3002\uff01\uff1f\u300d\u0964\u061f\u06d4")


@dataclass(frozen=True)
class Cleanup:
    """Which of C4's rules apply. Lines: dropped one by one. Pages: the document is dropped."""

    javascript_lines: bool = True
    policy_lines: bool = True
    terminal_punctuation: bool = False  # drops lines that do not end as a sentence does
    min_line_words: int = 0  # drops shorter lines; C4: 5
    lorem_ipsum_pages: bool = True
    curly_bracket_pages: bool = False  # C4: on; drops all source code


def clean(text: str, rules: Cleanup | None = None) -> tuple[str, Decision]:
    """The text in NFC, its lines ended by \\n, without control characters and boilerplate lines; and what was done.

    Not kept, with reason: "lorem_ipsum", "curly_bracket" (the page rules), "empty" (nothing is left). Numbers: the
    characters before and after, the control characters removed, and the lines dropped by each rule.
    """
    rules = rules or Cleanup()
    numbers = {"characters_in": len(text)}
    text = _LINE_END.sub("\n", text)
    text, numbers["control_characters"] = _CONTROL.subn("", text)
    lines, dropped = _without_boilerplate(unicodedata.normalize("NFC", text), rules)
    text = _BLANK_LINES.sub("\n\n", "\n".join(map(str.rstrip, lines))).strip()
    numbers |= {"characters_out": len(text), **dropped}
    reason = ""
    if not text:
        reason = "empty"
    elif rules.lorem_ipsum_pages and "lorem ipsum" in text.lower():
        reason = "lorem_ipsum"
    elif rules.curly_bracket_pages and "{" in text:
        reason = "curly_bracket"
    return text, Decision("cleanup", not reason, reason, numbers)


def _without_boilerplate(text: str, rules: Cleanup) -> tuple[list[str], Counter[str]]:
    """The lines of the text that no rule drops, and how many each rule dropped."""
    dropped: Counter[str] = Counter()
    lines = text.split("\n")
    if not (rules.terminal_punctuation or rules.min_line_words or _phrase_rule(text, rules)):
        return lines, dropped  # as of nearly every text
    kept = []
    for line in lines:
        if rule := _phrase_rule(line, rules) or _shape_rule(line, rules):
            dropped[rule] += 1
        else:
            kept.append(line)
    return kept, dropped


def _phrase_rule(text: str, rules: Cleanup) -> str:
    """The name of the rule that drops lines for a phrase in `text`; "" for none."""
    lower = text.lower()
    if rules.javascript_lines and "javascript" in lower:
        return "javascript_lines"
    if rules.policy_lines and any(phrase in lower for phrase in _POLICY):
        return "policy_lines"
    return ""


def _shape_rule(line: str, rules: Cleanup) -> str:
    """The name of the rule that drops `line` for its length or end; "" for none. An empty line parts paragraphs."""
    words = line.split()
    if words and rules.terminal_punctuation and not words[-1].endswith(_TERMINAL):
        return "terminal_punctuation"
    return "min_line_words" if 0 < len(words) < rules.min_line_words else ""
