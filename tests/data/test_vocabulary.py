"""What is said of texts that a vocabulary was not made for, by the real one of all-MiniLM-L6-v2."""

from __future__ import annotations

import pytest

from newsdesk.data.vocabulary import ENGLISH, ScriptFit, VocabularyFit
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.runs.ready_made import FOLDER

E5, BOTH = (
    "use --base multilingual-e5-small",
    "use --base multilingual-e5-small or --base granite-embedding-107m-multilingual",
)
FOREIGN = (
    "where these texts are not English, --base multilingual-e5-small (93 languages) or "
    "--base granite-embedding-107m-multilingual (12 languages) should read them better"
)
GERMAN = (
    "Die Bundesregierung hat am Mittwoch beschlossen, die Unternehmenssteuern im kommenden Jahr zu senken."
)
VIETNAMESE = "Thủ tướng cho biết các nhà đầu tư nước ngoài đã rót thêm tiền vào thị trường chứng khoán."


@pytest.fixture(scope="module")
def minilm():
    return TextTokenizer.from_folder(FOLDER / "ag-news" / "tokenizer", None)


@pytest.mark.parametrize(
    ("text", "script", "advice"),
    [
        ("أعلن الرئيس اليوم عن خطة اقتصادية جديدة", "Arabic", BOTH),
        ("ראש הממשלה הודיע היום על תוכנית חדשה", "Hebrew", E5),
        ("Правительство объявило о новом плане", "Cyrillic", E5),
        ("Η κυβέρνηση ανακοίνωσε νέο σχέδιο", "Greek", E5),
        ("सरकार ने आज नई योजना की घोषणा की", "Devanagari", E5),
        ("รัฐบาลประกาศแผนเศรษฐกิจใหม่วันนี้", "Thai", E5),
        ("政府今天宣布新的经济计划", "Chinese", BOTH),
        ("政府は新しい経済計画を発表した", "Japanese", BOTH),
        ("정부는 오늘 새로운 경제 계획을 발표했다", "Korean", BOTH),
        ("Կառավարությունը հայտարարեց նոր ծրագիր", "Armenian", E5),
        ("მთავრობამ ახალი გეგმა გამოაცხადა", "Georgian", E5),
        ("সরকার নতুন পরিকল্পনা ঘোষণা করেছে", "Bengali", E5),
        ("ཞིང་ལས་པའི་གསར་འགྱུར", "Tibetan", "no base model known by name reads Tibetan"),
    ],
)
def test_a_script_that_the_vocabulary_does_not_read_gets_the_bases_that_do(text, script, advice, minilm):
    fit = minilm.fit([text])
    assert [(one.name, one.is_unread) for one in fit.scripts] == [(script, True)]
    assert fit.warning.endswith(f": {advice}")
    assert "known to the base model" in fit.warning or "letter by letter" in fit.warning


def test_a_minority_in_another_script_is_named_with_its_share(minilm):
    texts = ["Oil prices rose again"] * 9 + ["أعلن الرئيس اليوم عن خطة اقتصادية جديدة"]
    assert minilm.fit(texts).warning == (
        "17% of the letters are Arabic, which the base model spells letter by letter "
        f"(1.0 letters a token): {BOTH}"
    )
    assert minilm.fit(texts[:9] * 20 + texts[9:]).warning is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GERMAN, "words fall into 2.7 tokens each, those of English news into 1.1"),
        (VIETNAMESE, "the accents of 30% of the letters are not read"),
    ],
)
def test_words_in_latin_letters_that_fall_apart_are_compared_with_english(text, found, minilm):
    assert minilm.fit([text] * 12).warning == f"{found}: {FOREIGN}"
    assert minilm.fit([text]).warning is None  # too few words to tell


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        "Café society: the Brontës, Beyoncé and José Mourinho met the mayor of Zürich on a terrace",
        "Great goal 😀🔥🔥 what a match!!! 😂",
        "def read_rows(path): return [row.split(',') for row in open(path).read_text().splitlines()]",
        "where α and β are the rates of growth of the two populations in the model",
        "𝐁𝐫𝐞𝐚𝐤𝐢𝐧𝐠 news: 5 µm, the 1ª edition",
        "12.5 % 3-1 !!!",
        "",
    ],
)
def test_english_with_accents_emoji_code_or_formulas_is_no_other_language(text, minilm):
    assert minilm.fit([text] * 30).warning is None


def test_a_vocabulary_that_knows_the_words_is_not_questioned():
    script = ScriptFit("Cyrillic", "und-Cyrl", 1.0, 0.001, 3.4)
    fit = VocabularyFit(0.001, 3.4, scripts=(script,), words=500, pieces_per_word=1.6, english=1.25)
    assert (fit.unread, fit.is_foreign, fit.warning) == (None, False, None)
