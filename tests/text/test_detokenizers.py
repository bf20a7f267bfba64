"""De-tokenisers undo what the published files did to punctuation."""

import pytest

from gpt_jax.text.detokenizers import penn_treebank, wikitext


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        (" = Homarus gammarus = ", "= Homarus gammarus ="),
        (" = = Description = = ", "== Description =="),
        (
            "60 cm ( 24 in ) and 6 @.@ 5 kg , lobster @-@ red , 1 @,@ 000 .",
            "60 cm (24 in) and 6.5 kg, lobster-red, 1,000.",
        ),
        ('become " lobster red " on cooking', 'become "lobster red" on cooking'),
        ("the crew 's ship did n't sink ; why ?", "the crew's ship didn't sink; why?"),
        ("a <unk> b", "a <unk> b"),
    ],
)
def test_wikitext_reads_as_people_write(tokenised, text):
    assert wikitext(tokenised) == text


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        ("`` I do n't know , '' said Ann .", '"I don\'t know," said Ann.'),
        ("the dog 's tail -LRB- long -RRB-", "the dog's tail (long)"),
    ],
)
def test_penn_treebank_reads_as_people_write(tokenised, text):
    assert penn_treebank(tokenised) == text
