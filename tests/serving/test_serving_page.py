"""The page for people, in a real browser and on a real server: it shows what the server says, as text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import newsdesk
from browsers import CONTRASTS, DESK, NEEDS_BROWSER, PHONE, asked_for, fits, look, started_browser
from newsdesk.serving.access import make_token
from served_exports import Running, headline, running, wait_until, with_several_labels
from tiny_exports import build_exported

pytestmark = NEEDS_BROWSER

TEXTS = [headline(0, 0), headline(2, 3), "goal bank orbit", "<img src=x onerror=\"document.title='broken'\">"]
RIGHT_TO_LEFT = "أعلن الرئيس (اليوم) عن خطة بقيمة 12.5 مليار دولار"


@pytest.fixture(scope="module")
def desk(export, tmp_path_factory) -> Iterator[Running]:
    """A server of two models: one label a text, and several."""
    several = with_several_labels(tmp_path_factory.mktemp("page") / "several")
    with running(export, several, manage=True, max_texts=64, max_characters=2000) as server:
        yield server


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads) -> Iterator[Any]:
    with started_browser(tmp_path_factory.mktemp("profile"), downloads=downloads) as driver:
        yield driver


@pytest.fixture
def page(browser, desk) -> Iterator[Any]:
    """The page, opened anew; after the test it must have logged no error and asked nobody else."""
    opened(browser, desk)
    yield browser
    assert [entry for entry in browser.get_log("browser") if "/v1/" not in entry["message"]] == []
    asked = [url for url in asked_for(browser) if url.startswith(("http", "ws", "file"))]
    assert asked
    assert [url for url in asked if not url.startswith((f"{desk.url}/", f"blob:{desk.url}/"))] == []


def opened(browser, server, width=DESK, theme="light"):
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    look(browser, f"{server.url}/", width, theme)
    wait_until(lambda: shown(browser, "#ask") or shown(browser, "#token-form"))


def shown(browser, selector):
    """The text of the first element of a selector that is shown; None where none is."""
    return browser.execute_script(
        "const e = [...document.querySelectorAll(arguments[0])].find(e => e.getClientRects().length);"
        "return e ? e.innerText : null",
        selector,
    )


def all_shown(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector
    )


def press(browser, selector):
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def classify(browser, texts, *, waits=True):
    """Type texts, a line each, press Ctrl and Enter, and wait for what is said then."""
    from selenium.webdriver.common.keys import Keys

    area = browser.find_element("id", "text")
    browser.execute_script("arguments[0].value = arguments[1]", area, "\n".join(texts))
    area.send_keys(Keys.CONTROL, Keys.ENTER)
    if waits:
        wait_until(lambda: shown(browser, "#status") or shown(browser, "#trouble"))


def choose(browser, model, *, chosen=True):
    browser.execute_script(
        "const box = document.querySelector(`#models [value='${arguments[0]}']`);"
        "if (box.checked !== arguments[1]) box.click()",
        model,
        chosen,
    )


def asked_of(server, texts, **asked):
    return server.client.post("/v1/classify", json={"texts": texts, **asked}).json()["results"]


def as_shown(probability):
    if probability < 0.0005:
        return "under 0.1 %"
    return "over 99.9 %" if probability >= 0.9995 else f"{100 * probability:.1f} %"


# --- the files


def test_the_page_may_load_its_own_files_alone_and_run_nothing_that_is_written_into_it(desk):
    for path, media_type in {
        "/": "text/html",
        "/page/page.css": "text/css",
        **{
            f"/page/{name}.js": "text/javascript" for name in ("page", "csv", "download", "results", "server")
        },
        "/page/icon.svg": "image/svg+xml",
    }.items():
        answer = desk.client.get(path)
        assert answer.headers["content-type"].partition(";")[0] == media_type
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
        )
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert desk.client.head(path).status_code == 200
    html = desk.client.get("/").text
    assert "style=" not in html
    assert "<style" not in html
    assert not {
        path for path in desk.client.get("/openapi.json").json()["paths"] if "page" in path or path == "/"
    }


def test_the_limits_are_those_of_the_server(desk):
    limits = desk.client.get("/v1/limits").json()
    assert (limits["max_texts"], limits["max_characters"], limits["max_explained"]) == (64, 2000, 4)
    assert limits["promise"] == {}


# --- what is typed


def test_labels_and_bars_are_those_of_the_protocol(page, desk):
    classify(page, TEXTS[:3])
    (result,) = asked_of(desk, TEXTS[:3])
    found = all_shown(page, "#list .quote")
    assert len(found) == 3
    for number, said in enumerate(result["predictions"]):
        result_of = f"#list .quote:nth-child({number + 1})"
        assert shown(page, f"{result_of} .label bdi") == said["label"]
        ranked = sorted(said["probabilities"].items(), key=lambda entry: -entry[1])
        assert all_shown(page, f"{result_of} .bars bdi") == [label for label, _ in ranked]
        assert all_shown(page, f"{result_of} .bars .chance") == [as_shown(p) for _, p in ranked]
        shares = page.execute_script(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map(e => +e.style.getPropertyValue('--share'))",
            f"{result_of} .bar",
        )
        assert shares == [p for _, p in ranked]
    assert shown(page, "#status") == "3 texts classified."


def test_a_text_stays_a_text(page):
    classify(page, TEXTS)
    assert shown(page, "#list .quote:nth-child(4) blockquote") == TEXTS[3]
    assert page.find_elements("tag name", "img") == []
    assert page.title == "newsdesk: classify texts"


def test_an_article_is_one_text_and_nothing_is_a_sentence(page):
    classify(page, [])
    assert shown(page, "#trouble") == "There is no text yet. Type or paste one, or choose a file."
    press(page, "[value=whole]")
    classify(page, ["goal coach", "", "striker"])
    assert shown(page, "#status") == "1 text classified."
    assert shown(page, "#trouble") is None
    classify(page, ["goal " * 500])
    assert "longer than the 2,000 characters" in shown(page, "#list .answer")


def test_what_the_promise_does_not_cover_is_not_sure(page, desk):
    page.execute_script("document.getElementById('abstain').value = '0.05'")
    classify(page, TEXTS[:3])
    (result,) = asked_of(desk, TEXTS[:3], abstain=0.05)
    assert result["predictions"][2]["label"] is None
    assert all_shown(page, "#list .badge") == ["Not sure"]
    answer = shown(page, "#list .quote:nth-child(3) .answer")
    assert all(label in answer for label in result["predictions"][2]["candidates"])
    assert "At most 5 % of its answers are wrong, with 95 % confidence" in shown(page, "#summary")


def test_a_promise_that_cannot_be_kept_is_a_sentence(page):
    page.execute_script("document.getElementById('abstain').options[1].value = '0.000001'")
    page.execute_script("document.getElementById('abstain').value = '0.000001'")
    classify(page, TEXTS[:1])
    assert "No threshold promises" in shown(page, "#trouble")


def test_what_the_server_promises_is_shown_and_kept_beside_what_is_chosen(browser, export):
    with running(export, promise={"sets": 0.97}) as server:
        opened(browser, server)
        texts = [TEXTS[0], "goal bank bank"]
        for limit, asked in (("", {}), ("0.05", {"abstain": 0.05, "sets": 0.97})):
            browser.execute_script("document.getElementById('abstain').value = arguments[0]", limit)
            classify(browser, texts)
            (result,) = asked_of(server, texts, **asked)
            for number, said in enumerate(result["predictions"], 1):
                named = all_shown(browser, f"#list .quote:nth-child({number}) .answer bdi")
                assert named == said["candidates"]
                answer = shown(browser, f"#list .quote:nth-child({number}) .label bdi")
                assert answer == said["label"]
            assert "contain the true one for 97 % of such texts" in shown(browser, "#summary")
        assert len(named) > 1


def test_two_models_answer_side_by_side(page, desk):
    choose(page, "several")
    classify(page, TEXTS[:2])
    one, several = asked_of(desk, TEXTS[:2], models=["desk", "several"])
    assert all_shown(page, "#list .quote:first-child .by") == ["desk", "several"]
    labels = all_shown(page, "#list .quote:first-child .said:nth-child(2) .label bdi")
    assert labels == several["predictions"][0]["labels"]
    assert shown(page, "#list .quote:first-child .said .label bdi") == one["predictions"][0]["label"]
    tops = page.execute_script(
        "return [...document.querySelectorAll('#list .quote:first-child .said')]"
        ".map(e => e.getBoundingClientRect().top)"
    )
    assert tops[0] == tops[1]
    press(page, "#list .quote button")
    wait_until(lambda: len(all_shown(page, ".explained blockquote")) == 2)
    assert all_shown(page, ".explained .by") == ["desk", "several"]


def test_the_words_that_decided_are_marked(page, export):
    text = "😀 bank coach bank"
    classify(page, [text])
    press(page, "#list .quote button")
    wait_until(lambda: shown(page, ".explained blockquote"))
    found = newsdesk.explain(newsdesk.load(export), text)
    heaviest = max(abs(word.weight) for word in found.words)
    marked = [word for word in found.words if abs(word.weight) >= 0.15 * heaviest]
    assert all_shown(page, ".explained mark") == [word.text for word in marked]
    sides = page.execute_script("return [...document.querySelectorAll('mark')].map(e => e.classList[0])")
    assert sides == ["for" if word.weight > 0 else "against" for word in marked]
    assert shown(page, ".explained blockquote") == text
    assert f"For {found.target}: bank" in shown(page, ".words")


def test_the_keyboard_is_enough(page, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def reach(selector):
        for _ in range(30):
            if page.execute_script("return document.activeElement.matches(arguments[0])", selector):
                outline = page.execute_script(
                    "const style = getComputedStyle(document.activeElement);"
                    "return [style.outlineStyle, parseFloat(style.outlineWidth)]"
                )
                assert outline[0] == "solid"
                assert outline[1] >= 2
                return
            ActionChains(page).send_keys(Keys.TAB).perform()
        raise AssertionError(f"the keyboard does not reach {selector}")

    reach("#text")
    ActionChains(page).send_keys(TEXTS[0]).perform()
    reach("#go")
    ActionChains(page).send_keys(Keys.ENTER).perform()
    wait_until(lambda: shown(page, "#status"))
    for selector in ("#download", "#list button"):
        reach(selector)
    ActionChains(page).send_keys(Keys.SPACE).perform()
    wait_until(lambda: shown(page, ".explained mark"))
    reach("#list button")
    file = tmp_path / "keys.csv"
    file.write_text("text\ngoal\n")
    page.execute_script("document.getElementById('file').focus()")
    take_file(page, file)
    assert page.execute_script("return document.activeElement.matches('#columns input')")


# --- how it looks


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read_by_day_and_by_night(browser, desk, theme):
    opened(browser, desk, PHONE, theme)
    assert fits(browser)
    choose(browser, "several")
    press(browser, "#promising summary")
    browser.execute_script("document.getElementById('abstain').value = '0.1'")
    classify(browser, [*TEXTS, RIGHT_TO_LEFT, "w" * 900])
    press(browser, "#list .quote button")
    wait_until(lambda: shown(browser, ".explained mark"))
    assert fits(browser)
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 60
    assert contrasts[0][0] >= 4.5, contrasts[0]  # WCAG 2.2, 1.4.3
    aligned = browser.execute_script(
        "return getComputedStyle(document.querySelector('#list .quote:nth-child(5) blockquote')).direction"
    )
    assert aligned == "rtl"


# --- files


def take_file(browser, path):
    browser.find_element("id", "file").send_keys(str(path))
    wait_until(lambda: shown(browser, "#file-facts") or shown(browser, "#trouble"))


def downloaded(browser, downloads, name):
    press(browser, "#download")
    path = downloads / name
    wait_until(lambda: path.exists() and path.stat().st_size > 0)
    content = path.read_bytes()
    path.unlink()
    return content


ROWS = [
    ["id", "text", "label"],
    ["1", 'bank, profit\nand a "bank"', "=1+1"],
    ["2", "goal; coach\r\n\ttennis", ""],
    ["3", "orbit 😀 " + RIGHT_TO_LEFT, "-3"],
    ["4", "", "@x"],
]


@pytest.mark.parametrize("written", [",", ";", "\t"])
def test_a_csv_comes_back_with_its_cells_and_the_labels(page, desk, downloads, tmp_path, written):
    file = tmp_path / "wire.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, delimiter=written).writerows(ROWS)
    take_file(page, file)
    assert shown(page, "#file-facts") == "4 rows, 3 columns"
    checked = page.execute_script(
        "return [...document.querySelectorAll('#columns :checked')].map(e => e.value)"
    )
    assert checked == ["1"]  # the run's own text column
    press(page, "#go")
    wait_until(lambda: shown(page, "#status"))
    content = downloaded(page, downloads, "wire-classified.csv").decode("utf-8-sig")
    header, *rows = csv.reader(content.splitlines(keepends=True), delimiter=written, strict=True)
    (result,) = asked_of(desk, [row[1] for row in ROWS[1:]])
    assert header == [*ROWS[0], "predicted_label", "probability", "reason"]
    assert [row[:3] for row in rows] == ROWS[1:]
    for row, said in zip(rows, result["predictions"], strict=True):
        assert row[3] == (said["label"] or "")
        assert float(row[4]) == said["probability"]
        assert row[5] == (said.get("reason") or "")


@pytest.mark.parametrize("limit", ["", "0.05"])
@pytest.mark.parametrize("model", ["desk", "several"])
def test_the_download_is_byte_for_byte_what_predict_writes(page, desk, downloads, tmp_path, model, limit):
    file = tmp_path / "same.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(
            [*ROWS, ["5", "goal bank", "x"], ["6", "goal", " y"]]
        )
    for name in ("desk", "several"):
        choose(page, name, chosen=name == model)
    take_file(page, file)
    page.execute_script("document.getElementById('abstain').value = arguments[0]", limit)
    press(page, "#go")
    wait_until(lambda: shown(page, "#status"))
    promise = {"abstain": float(limit)} if limit else {}
    source = desk.service.models.sources[model]
    newsdesk.predict_file(newsdesk.load(source), file, tmp_path / "predicted.csv", **promise)
    found = downloaded(page, downloads, "same-classified.csv")
    assert found.decode() == (tmp_path / "predicted.csv").read_bytes().decode()


@pytest.mark.parametrize(("encoding", "said"), [("cp1252", "windows-1252"), ("utf-16", "utf-16le")])
def test_a_csv_of_another_encoding_comes_back_in_utf_8(page, downloads, tmp_path, encoding, said):
    file = tmp_path / "old.csv"
    file.write_bytes("text;place\r\nSprinter “läuft”;Köln\r\n".encode(encoding))
    take_file(page, file)
    assert shown(page, "#file-facts") == f"1 row, 2 columns, {said}"
    press(page, "#go")
    wait_until(lambda: shown(page, "#status"))
    content = downloaded(page, downloads, "old-classified.csv")
    assert content.decode("utf-8-sig").splitlines()[1].startswith("Sprinter “läuft”;Köln;")
    assert content.startswith(b"\xef\xbb\xbf") == (encoding == "utf-16")


def test_columns_that_a_run_reads_are_put_together_as_the_run_does(browser, downloads, tmp_path):
    rows = [{"title": headline(0, 0), "body": "goal"}, {"title": "", "body": headline(2, 1)}]
    file = tmp_path / "columns.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["body", "id", "title"], restval="7")
        writer.writeheader()
        writer.writerows(rows)
    with running(build_exported(tmp_path / "pair", text_columns=("title", "body"))) as server:
        opened(browser, server)
        take_file(browser, file)
        press(browser, "#go")
        wait_until(lambda: shown(browser, "#status"))
        found = csv.DictReader(downloaded(browser, downloads, "columns-classified.csv").decode().splitlines())
        (result,) = asked_of(server, rows)
        assert [float(row["probability"]) for row in found] == [
            said["probability"] for said in result["predictions"]
        ]


def test_cells_that_a_spreadsheet_would_compute_are_disarmed_where_that_is_asked_for(
    page, downloads, tmp_path
):
    file = tmp_path / "cells.csv"
    file.write_text("text,n\ngoal,=1+1\nbank,-3\norbit,@x\n")
    take_file(page, file)
    press(page, "#go")
    wait_until(lambda: shown(page, "#status"))
    press(page, "#summary .choice input")
    _, *rows = csv.reader(downloaded(page, downloads, "cells-classified.csv").decode().splitlines())
    assert [row[1] for row in rows] == ["'=1+1", "-3", "'@x"]


def test_many_rows_are_sent_in_parts_and_only_some_are_shown(page, downloads, tmp_path):
    file = tmp_path / "many.csv"
    rows = [[headline(number % 3, number), str(number)] for number in range(400)]
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["headline", "number"], *rows])
    take_file(page, file)
    choose(page, "several")
    press(page, "#go")
    wait_until(lambda: shown(page, "#status"))
    assert shown(page, "#status") == "400 texts classified."
    assert len(page.find_elements("css selector", "#list > li")) == 300
    header, *found = csv.reader(downloaded(page, downloads, "many-classified.csv").decode().splitlines())
    assert [row[:2] for row in found] == rows
    at = header.index("desk label")
    assert [row[at] for row in found[:3]] == ["Business", "Science", "Sports"]
    assert found[0][header.index("several labels")] == "Business"


def test_files_that_cannot_be_read_are_a_sentence(page, tmp_path):
    broken = tmp_path / "broken.csv"
    broken.write_text('text,n\n"goal,1\nbank,2\n')
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    header = tmp_path / "header.csv"
    header.write_text("text,n\n")
    take_file(page, header)
    press(page, "#go")
    assert shown(page, "#trouble") == "The file has no row below the names of its columns."
    press(page, "#drop-file")
    for file, said in ((broken, "never closed"), (empty, "it is empty")):
        page.execute_script("document.getElementById('trouble').hidden = true")
        take_file(page, file)
        assert said in shown(page, "#trouble")
        assert shown(page, "#typing") is not None


# --- servers that say no


def test_a_token_is_asked_for_and_work_waits_for_its_rate_is_stopped_and_goes_on(
    browser, export, downloads, tmp_path
):
    file = tmp_path / "tokens.json"
    token = make_token(file, "reader")
    with running(export, tokens=file, rate=20.0) as server:
        opened(browser, server)
        assert shown(browser, "#ask") is None
        for given in ("nd_wrong", token):
            area = browser.find_element("id", "token")
            area.clear()
            area.send_keys(given)
            press(browser, "#token-form button")
            wait_until(lambda: shown(browser, "#trouble") or shown(browser, "#ask"))
            if given != token:
                assert shown(browser, "#trouble").startswith("The server does not know this token.")
        assert shown(browser, "#trouble") is None
        assert shown(browser, "#token-form") is None
        assert browser.execute_script(
            "return [sessionStorage.length, localStorage.length, document.cookie]"
        ) == [
            *(0, 0),
            "",
        ]
        rows = tmp_path / "rows.txt"
        rows.write_text("goal coach\n" * 215)
        take_file(browser, rows)
        assert shown(browser, "#file-facts") == "215 rows, 1 column"
        press(browser, "#go")
        wait_until(lambda: "The server is busy" in (shown(browser, "#progress .note") or ""))
        press(browser, "#cancel")
        wait_until(lambda: shown(browser, "#resume"))
        done = int(shown(browser, "#status").split()[0])
        assert 0 < done < 215
        assert len(downloaded(browser, downloads, "rows-classified.csv").splitlines()) == done + 1
        press(browser, "#resume")
        wait_until(lambda: shown(browser, "#status") == "215 texts classified.")
        assert len(downloaded(browser, downloads, "rows-classified.csv").splitlines()) == 216


def test_a_model_that_is_gone_is_a_sentence_and_leaves_the_list(browser, export, tmp_path):
    other = with_several_labels(tmp_path / "other")
    with running(export, other, manage=True) as server:
        opened(browser, server)
        choose(browser, "other")
        assert server.client.delete("/v1/models/other").status_code == 204
        classify(browser, TEXTS[:1])
        assert "no model 'other'" in shown(browser, "#trouble")
        assert "Choose one of the models that are listed now." in shown(browser, "#trouble")
        wait_until(lambda: len(browser.find_elements("css selector", "#models input")) == 1)
        classify(browser, TEXTS[:1])
        wait_until(lambda: shown(browser, "#status") == "1 text classified.")
    classify(browser, TEXTS[1:2], waits=False)
    wait_until(lambda: "The server does not answer" in (shown(browser, "#progress .note") or ""))
    press(browser, "#cancel")
    wait_until(lambda: shown(browser, "#cancel") is None)
