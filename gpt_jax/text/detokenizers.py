"""What undoes the tokenisation of published texts, so that a model reads what people write (GPT-2, §3.1).

GPT-2 gained 2.5 to 5 points of perplexity by such rules and did not publish them; these are ours. They are not
invertible to the letter: published figures count the words and bytes of the text as it stands in the file.
"""

import re

_OPENING, _CLOSING = "([{", ")]}.,;:!?%"


def _quotes(text: str) -> str:
    """' " word " ' to ' "word" ', the quotation marks of a line taken in pairs."""
    return re.sub(r'" *([^"\n]*?) *"', r'"\1"', text)


def _brackets_and_points(text: str) -> str:
    text = re.sub(rf" ([{re.escape(_CLOSING)}])", r"\1", text)
    return re.sub(rf"([{re.escape(_OPENING)}]) ", r"\1", text)


def wikitext(text: str) -> str:
    """WikiText-2 and -103: " @-@ ", spaces around punctuation, quotes and brackets, "= = Heading = ="."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r"(?m)^[ ]?((?:= )+)(.*?)((?: =)+)[ ]*$", lambda m: _heading(m[1], m[2], m[3]), text)
    text = _quotes(_brackets_and_points(text))
    text = re.sub(r" '(s|re|ve|ll|d|m|t)\b", r"'\1", text).replace(" n't", "n't").replace("s ' ", "s' ")
    text = re.sub(r"([$£€#]) (\d)", r"\1\2", text).replace(" – ", "–").replace(" ° ", "°")
    return re.sub(r"(?m)^ | $", "", text)


def _heading(before: str, title: str, after: str) -> str:
    return f"{before.replace(' ', '')} {title} {after.replace(' ', '')}"


def penn_treebank(text: str) -> str:
    """The Penn Treebank's spaces and brackets, as in the Children's Book Test: "did n't", "`` word ''", "-LRB-"."""
    text = text.replace("-LRB-", "(").replace("-RRB-", ")").replace("`` ", '"').replace(" ''", '"').replace("``", '"')
    text = re.sub(r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1", text)
    return _brackets_and_points(_quotes(text)).replace(" '", "'")


DETOKENIZERS = {"none": str, "wikitext": wikitext, "penn_treebank": penn_treebank}
