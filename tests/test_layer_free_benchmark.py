"""The benchmark of students without layers: which texts a student reads."""

import json

from benchmarks.layer_free.students import GENERAL, RECIPES, Sources

NAMES = ("banking77", "stsb", "wnut17")


def test_students_for_unseen_tasks_do_not_read_their_texts():
    assert RECIPES["int8"].sources(NAMES, "stsb") == NAMES
    assert RECIPES["unseen"].sources(NAMES, "stsb") == ("banking77", "wnut17")
    assert RECIPES["unseen + general text"].sources(NAMES, "stsb") == ("banking77", "wnut17", *GENERAL)
    assert RECIPES["half of Wikipedia"].sources(NAMES, "stsb") == GENERAL[:2]


def test_general_text_is_paragraphs(tmp_path):
    long = [f"paragraph {number} " + "of many words " * 10 for number in range(6)]
    articles = [{"text": "Heading\n" + text} for text in long[:5]] + [{"text": long[0]}]
    (tmp_path / "wikipedia_en_sample").mkdir()
    (tmp_path / "wikipedia_en_sample" / "train.jsonl").write_text("\n".join(map(json.dumps, articles)))
    (tmp_path / "wikitext2_valid_test").mkdir()
    for part in ("valid", "test"):
        text = f" = Heading = \n \n {long[5]} well @-@ known , 1 @,@ 000 \n"
        (tmp_path / "wikitext2_valid_test" / f"{part}.txt").write_text(text)
    sources = Sources(None, tmp_path, tmp_path, dev=False)
    texts = [sources.texts(name) for name in GENERAL]
    assert texts == [
        [long[0].strip(), long[4].strip()],
        [long[1].strip(), long[0].strip()],
        [long[2].strip()],
        [long[3].strip()],
        [f"{long[5]} well-known , 1,000"],
    ]
