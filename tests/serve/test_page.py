"""The page at `/` in a real browser, before a real service. Screenshots: KNOWNOT_SCREENSHOTS."""

from __future__ import annotations

import csv
import json
import os
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from knownot.errors import ConfigError
from knownot.serve.samples import MOST, load_samples
from knownot.serve.schemas import Box
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy
from tests.serve.conftest import BLUE, GREEN, LIMITS, RED, Running, encoded, running

pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
from playwright.sync_api import Browser, Page, expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that an owner might offer: a red one, a blue one, and one that is none."""
    folder = tmp_path_factory.mktemp("samples")
    (folder / "a.jpg").write_text("no photo")
    noisy(COLOURS["red"], 5).save(folder / "b.png")
    noisy(UNKNOWN_COLOUR, 5).save(folder / "c.png")
    return folder


@pytest.fixture(scope="module")
def site(exported: dict[bool, tuple[object, Path]], samples: Path) -> Iterator[Running]:
    # The browser keeps connections open that the shortest patience would cut.
    limits = replace(LIMITS, header_seconds=10)
    with running(exported[False][1], limits, samples=load_samples(samples)) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    media = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", *media]
        )
        yield started
        started.close()


@pytest.fixture
def opened(
    browser: Browser, site: Running, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Opened]:
    """Opens the page; at the end a screenshot is kept, and nothing may have gone wrong in it."""
    pages: list[Page] = []
    wrong: list[str] = []
    asked: list[str] = []

    def open_page(url: str = site.url, **options: object) -> Page:
        page = browser.new_page(**{"locale": "en-GB", **options})
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda one: asked.append(one.url))
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    folder = Path(os.environ.get("KNOWNOT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages:
        page.screenshot(path=folder / f"{request.node.name}.png", full_page=True)
        page.close()
    assert not wrong
    assert all(url.startswith(("http://127.0.0.1:", "blob:")) for url in asked)


def drop(page: Page, *files: tuple[str, bytes]) -> None:
    """Files dropped as the browser hands them to a page."""
    page.evaluate(
        """(files) => {
            const data = new DataTransfer();
            for (const [name, text] of files) {
                const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                data.items.add(new File([bytes], name));
            }
            document.querySelector("#drop").dispatchEvent(
                new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [[name, b64encode(data).decode()] for name, data in files],
    )


def label(page: Page) -> str:
    """The answer in large letters, once there is one."""
    page.locator("#label").wait_for()
    return page.locator("#label").inner_text()


def test_dropped_photos_are_known_or_unknown(opened: Opened, site: Running) -> None:
    page = opened()
    drop(page, ("red.png", RED), ("blue.png", BLUE))
    page.locator(".card").nth(1).wait_for()
    assert label(page) == "unknown"
    assert page.locator(".card").all_inner_texts() == ["unknown", "red"]
    (answer,) = site.predict(BLUE).json()["photos"]
    told = page.locator("#histogram svg").get_attribute("aria-label") or ""
    assert f"score: {float(format(answer['ood_score'], '.3g')):,g};" in told
    # The mark is on the unknown side of the threshold.
    mark, threshold = (
        float(page.locator(f"#histogram line.{name}").get_attribute("x1") or "nan")
        for name in ("mark", "threshold")
    )
    assert mark > threshold
    assert not page.locator("#similar").is_visible()  # no thumbnails are kept
    assert page.locator(".bars li").first.inner_text().split()[0] == answer["nearest"][0]["label"]
    assert page.locator("#status").inner_text().startswith("unknown.")
    page.locator(".card").nth(1).click()  # back to the first
    assert label(page) == "red"


def test_history_is_downloaded(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    drop(page, ('=a,"b".png', RED), ("torn.png", RED[: len(RED) // 2]), ("blue.png", BLUE))
    page.locator(".card").nth(2).wait_for()
    for button, name in (("#save-json", "h.json"), ("#save-csv", "h.csv")):
        with page.expect_download() as download:
            page.locator(button).click()
        download.value.save_as(tmp_path / name)
    history = json.loads((tmp_path / "h.json").read_text())
    assert history["model"]["classes"] == list(COLOURS)
    torn = history["answers"].pop(1)
    assert (torn["name"], torn["error"]) == ("torn.png", "unreadable_photo")
    assert [answer["label"] for answer in history["answers"]] == ["red", "unknown"]
    with (tmp_path / "h.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["error"] for row in rows] == ["", "unreadable_photo", ""]
    assert rows.pop(1)["name"] == "torn.png"
    assert [row["name"] for row in rows] == ['\'=a,"b".png', "blue.png"]
    assert [float(r["p_value"]) for r in rows] == [a["p_value"] for a in history["answers"]]
    page.locator("#clear").click()
    assert not page.locator("#history").is_visible()


def test_a_photo_without_an_object_is_in_the_history_too(opened: Opened) -> None:
    page = opened()
    table = page.evaluate(
        """async () => {
            const { asCsv, remember } = await import("/static/session.js");
            const answer = { boxes: [], score: "knn", alpha: 0.05 };
            remember({ url: "", time: "now", name: "empty.jpg", answer });
            return asCsv();
        }"""
    )
    (row,) = csv.DictReader(table.splitlines())
    assert (row["name"], row["label"], row["score"]) == ("empty.jpg", "", "knn")


def test_clearing_leaves_nothing(opened: Opened) -> None:
    page = opened()
    drop(page, ("red.tif", encoded(noisy(COLOURS["red"], 1), "TIFF")))
    expect(page.locator("#unshown")).to_be_visible()
    page.locator("#clear").click()
    expect(page.locator("#unshown")).to_be_hidden()


def test_errors_are_sentences_in_the_language(opened: Opened) -> None:
    page = opened()
    problem = page.locator("#problem")
    cases = {
        "unsupported_photo": b"no photo",
        "unreadable_photo": RED[: len(RED) // 2],
        "too_many_pixels": encoded(noisy(COLOURS["red"], 1).resize((1200, 1000)).convert("1")),
        "upload_too_large": bytes(LIMITS.upload_bytes + 1),
    }
    sentences = {
        "unsupported_photo": "This is not a photo that can be read. These can: JPEG, PNG",
        "unreadable_photo": "damaged",
        "too_many_pixels": "more than 1 megapixels",
        "upload_too_large": "larger than 0.29 MiB",
    }
    for name, data in cases.items():
        drop(page, (f"{name}.png", data))
        expect(problem).to_contain_text(sentences[name])
    expect(page.locator(".card.failed")).to_have_count(len(cases))
    page.get_by_role("button", name="日本語").click()
    expect(problem).to_contain_text("0.29 MiB を超えています")
    expect(page.locator(".card").first).to_contain_text("0.29 MiB を超えています")
    page.context.set_offline(True)
    drop(page, ("red.png", RED))
    expect(problem).to_contain_text("サービスに接続できません")
    page.context.set_offline(False)
    drop(page, ("red.png", RED))
    assert label(page) == "red"
    assert not problem.is_visible()


def test_what_goes_wrong_with_one_photo_stays_to_be_read(opened: Opened) -> None:
    page = opened()
    problem = page.locator("#problem")
    drop(page, ("torn.png", RED[: len(RED) // 2]), ("red.png", RED))
    expect(page.locator("#label")).to_have_text("red")
    expect(problem).to_contain_text("torn.png: ")
    page.locator(".card.failed").click()  # it is kept beside the others
    expect(problem).to_contain_text("damaged")
    page.locator(".card").first.click()
    expect(page.locator("#label")).to_have_text("red")
    assert not problem.is_visible()
    page.route("**/predict", lambda route: route.fulfill(body="<p>Please log in</p>"))
    drop(page, ("portal.png", RED))
    expect(problem).to_contain_text("cannot be reached")
    page.unroute("**/predict")
    drop(page, ("red.png", RED))
    assert label(page) == "red"
    assert not problem.is_visible()


def test_a_full_service_and_a_slow_one(opened: Opened, site: Running) -> None:
    page = opened()
    with site.service.load.accepted(LIMITS.queue):
        drop(page, ("red.png", RED))
        expect(page.locator("#problem")).to_contain_text("Try again in 1 s.")
    with site.service.load.uploading() as take:  # no byte is left for others
        take(LIMITS.uploads_bytes)
        drop(page, ("red.png", RED))
        expect(page.locator("#problem")).to_contain_text("The service is busy")


def test_by_keyboard_alone(opened: Opened) -> None:
    page = opened(reduced_motion="reduce")
    page.on("filechooser", lambda _: None)  # intercepted from now on, not some time after the key
    page.locator("#samples button").nth(1).wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#languages [lang=ja]")
    page.keyboard.press("Enter")
    expect(page.locator("#choose")).to_have_text("写真を選ぶ")
    tab_to("#choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "green.png", "mimeType": "image/png", "buffer": GREEN})
    assert label(page) == "green"
    tab_to("#samples button:last-child")
    page.keyboard.press("Space")
    expect(page.locator("#label")).to_have_text("未知")
    tab_to("#history li:last-child button")
    page.keyboard.press("Enter")
    expect(page.locator("#label")).to_have_text("green")


def test_camera_and_paste(opened: Opened) -> None:
    page = opened()
    page.locator("#camera").click()
    page.locator("#take:enabled").click()
    page.locator(".card").wait_for()
    assert not page.locator("#shutter").is_visible()
    page.locator("#camera").click()
    page.keyboard.press("Escape")
    assert not page.locator("#shutter").is_visible()
    page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "p.png", {type: "image/png"}));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
        }""",
        list(GREEN),
    )
    page.locator(".card").nth(1).wait_for()
    assert label(page) == "green"


def test_a_phone_in_the_dark(opened: Opened) -> None:
    page = opened(
        viewport={"width": 360, "height": 740}, color_scheme="dark", locale="ja-JP", has_touch=True
    )
    page.locator("#samples button").nth(1).tap()
    assert label(page) == "未知"  # the language is the browser's
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.evaluate(
        "[...document.querySelectorAll('button')].filter(b => b.offsetParent)"
        ".filter(b => b.getBoundingClientRect().height < 44).map(b => b.outerHTML)"
    )
    assert small == []  # large enough for a thumb


def test_a_service_with_a_key_and_thumbnails(
    opened: Opened, exported: dict[bool, tuple[object, Path]], samples: Path, thumbnails: Path
) -> None:
    limits = replace(LIMITS, header_seconds=10)
    offered = load_samples(samples)
    with running(
        exported[True][1], limits, api_key="secret", samples=offered, thumbnails=thumbnails
    ) as server:
        for path in ("/samples/0", "/thumbnails/0"):
            assert server.http.get(path).status_code == 401
        page = opened(server.url)
        field = page.get_by_label("This service asks for a key")
        for wrong in ("wrong", "鍵"):  # which no header can hold
            field.fill(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#problem")).to_have_text("The key is missing or wrong.")
        field.fill("secret")
        page.keyboard.press("Enter")
        page.locator("#samples button").first.click()
        assert label(page) == "red"
        expect(page.locator("#similar")).to_contain_text("Most similar training photos")
        pictures = page.locator("#similar img")
        expect(pictures).to_have_count(3)
        for picture in pictures.all():
            expect(picture).to_have_js_property("naturalWidth", 32)
        page.get_by_role("button", name="日本語").click()
        expect(page.get_by_role("img", name="学習写真：red")).to_have_count(3)
        expect(page.locator("#similar li")).to_have_text(["red"] * 3)
        page.goto("about:blank")  # no connection is left open


def test_boxes_have_the_colours_of_their_classes(opened: Opened) -> None:
    def box(corners: tuple[int, int, int, int], label: str, nearest: str) -> dict[str, object]:
        unknown = label == "unknown"
        p = None if not nearest else 0.01 if unknown else 0.5
        return Box(
            box=corners, label=label, is_unknown=unknown, ood_score=1.0, p_value=p,
            nearest_class=nearest, confidence=0.8, scores={},
        ).model_dump()  # fmt: skip

    boxes = [
        box((1, 2, 31, 42), "cat", "cat"),
        box((5, 5, 9, 9), "dog", "dog"),
        box((50, 0, 60, 20), "unknown", "dog"),
        box((0, 0, 8, 8), "unknown", ""),  # a proposal that no class claims
    ]
    page = opened()
    drawn = page.evaluate(
        """async (boxes) => {
            const { drawBoxes, boxNumbers } = await import("/static/boxes.js");
            const svg = document.querySelector("#overlay");
            drawBoxes(svg, [100, 80], boxes, ["cat", "dog"], 2);
            document.querySelector("#stage").hidden = false;
            return [...svg.querySelectorAll(".box")].map((rect, i) => ({
                place: ["x", "y", "width", "height"].map((name) => +rect.getAttribute(name)),
                stroke: getComputedStyle(rect).stroke,
                words: boxNumbers(boxes[i]),
            }));
        }""",
        boxes,
    )
    assert [one["place"] for one in drawn][:2] == [[1, 2, 30, 40], [5, 5, 4, 4]]
    cat, dog, *unknown = (one["stroke"] for one in drawn)
    assert len({cat, dog, *unknown}) == 3
    assert unknown[0] == unknown[1]
    assert [one["words"] for one in drawn] == ["80%", "80%", "dog? p 1%", ""]


def test_samples_hold_pictures_alone(site: Running, samples: Path, tmp_path: Path) -> None:
    assert site.http.get("/model").json()["samples"] == 2  # the file that is no photo is left out
    answer = site.http.get("/samples/1")
    assert answer.headers["content-type"] == "image/jpeg"
    for path in ("/samples/2", "/samples/-1", "/samples/..%2fb.png", "/samples/b.png"):
        assert site.http.get(path).status_code in (404, 422)
    photo = noisy(COLOURS["red"], 1)
    exif = photo.getexif()
    exif[0x010F] = "maker of the camera"
    for i in range(MOST + 2):
        photo.save(tmp_path / f"{i:02}.jpg", exif=exif, comment="words")
    loaded = load_samples(tmp_path)
    assert len(loaded) == MOST
    assert b"maker" in (tmp_path / "00.jpg").read_bytes()
    assert b"maker" not in loaded[0]
    assert b"words" not in loaded[0]
    for path in (tmp_path / "missing", samples / "a.jpg"):
        with pytest.raises(ConfigError, match="--samples"):
            load_samples(path)
