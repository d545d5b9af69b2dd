"""The page in a real browser: pointer, keyboard, search and zoom, and the numbers that it shows against the store's."""

import functools
import http.server
import shutil
import threading

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.progress import SilentReporter
from semrsm_dist.report.page import write_report
from semrsm_dist.report.view.cache import Cache
from semrsm_dist.report.view.live import LiveRun
from semrsm_dist.report.view.site import write_site

from .conftest import HOSTILE, make_run
from .test_view import Server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright's Python client is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BAR = 4 * 4 + 3
"""Pixels of a bar of four labels, with the gap to the map."""

LIMIT = 60_000
"""Milliseconds that the page may take for anything: machines are shared."""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:  # which makes a new profile
        browser = driver.chromium.launch(executable_path=BROWSER, headless=True, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def addresses(run, rectangular, neighbours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = {"run": run, "rectangular": rectangular, "neighbours": neighbours}
    return {name: write_report(one, folder / f"{name}.html").as_uri() for name, one in runs.items()}


def open_page(browser, address, **size):
    page = browser.new_page()
    page.set_default_timeout(LIMIT)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    own = address if address.startswith("http") else "file:"
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((own, "data:", "file:")) else page.problems.append(request.url)
        ),
    )
    page.set_viewport_size({"width": 1400, "height": 900, **size})
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")
    return page


@pytest.fixture
def page(browser, addresses):
    page = open_page(browser, addresses["run"])
    page.select_option("#layer", "late")
    wait_for_text(page, "#pair", "late")
    page.select_option("#order", "given")
    wait_for_order(page, "as given")
    yield page
    assert page.problems == []
    page.close()


def wait_for_text(page, where, *texts):
    """Wait until an element shows texts."""
    code = "([where, texts]) => texts.every(text => document.querySelector(where).innerText.includes(text))"
    page.wait_for_function(code, arg=[where, list(texts)])


def wait_for_order(page, name):
    """Wait until the maps are sorted."""
    code = "name => document.querySelector('#map-semantic')?.getAttribute('aria-label')?.includes(name)"
    page.wait_for_function(code, arg=name)


def numbers(page, where="#card"):
    """Return the numbers of the card of a pair, by their names."""
    terms, values = (page.locator(f"{where} {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(terms, values, strict=True))


def point_at(page, row, column, kind="semantic", n=24):
    """Move the pointer to a cell of a map of n x n cells, and return its place."""
    canvas = page.locator(f"#map-{kind}")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    side = {axis: (box[axis] - BAR) / n for axis in ("width", "height")}
    place = (
        box["x"] + BAR + (column + 0.5) * side["width"],
        box["y"] + BAR + (row + 0.5) * side["height"],
    )
    page.mouse.move(*place)
    return place


def expected(run, row, column):
    semantic, spatial = (
        float(run.similarity("late", kind=kind)[row, column]) for kind in ("semantic", "spatio-semantic")
    )
    return {
        "spatio-semantic": spatial,
        "semantic": semantic,
        "difference": semantic - spatial,
    }


def test_a_hovered_cell_has_the_numbers_of_the_store(page, run):
    for kind, row, column in (("semantic", 5, 17), ("spatial", 20, 2), ("difference", 7, 7)):
        point_at(page, row, column, kind)
        ids = run.manifest().image_ids()
        wait_for_text(page, "#card", ids[row], ids[column])
        shown = numbers(page)
        gap = float(shown.pop("certified gap"))
        wanted = expected(run, row, column)
        assert shown.keys() == wanted.keys()
        for name, value in wanted.items():
            assert abs(float(shown[name]) - value) < 6e-5, name  # four decimals
        true = float(run.gap("late", kernel="cosine")[row, column])
        assert true <= gap <= true * 1.15 + 1e-12


def test_a_click_pins_the_pair_and_shows_its_patches(page, run):
    pairs = page.evaluate("JSON.parse(document.getElementById('data').textContent).layers[1].matches.pairs")
    from semrsm_dist.report.page_data import Array

    row, column = map(int, Array.model_validate(pairs).read()[0])
    page.mouse.click(*point_at(page, row, column))
    ids = run.manifest().image_ids()
    wait_for_text(page, "#pair", ids[row], ids[column])
    assert page.locator("#patches-matched").is_visible()
    assert page.locator("#patches-identity").is_visible()
    assert abs(float(numbers(page, "#pair")["semantic"]) - expected(run, row, column)["semantic"]) < 6e-5
    rows = page.locator(".matches tbody tr")
    adds = [float(text) for text in page.locator(".matches tbody td:nth-child(3)").all_inner_texts()]
    assert adds == sorted(adds, reverse=True)
    assert rows.count() == 8
    page.locator("#patches-matched").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#patch").inner_text().startswith("Match 3 of 9")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#patch").inner_text().startswith("Match 2 of 9")
    box = page.locator("#patches-matched").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.wait_for_function("() => document.getElementById('patch').textContent.includes('patch (1, 1) with')")


def test_the_keyboard_alone_finds_and_pins_a_pair(page, run):
    page.locator("#map-spatial").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    ids = run.manifest().image_ids()
    assert ids[2] in page.locator("#card").inner_text()
    assert ids[11] in page.locator("#card").inner_text()
    assert ids[11] in page.locator("#card-text").inner_text()
    page.keyboard.press("Enter")
    wait_for_text(page, "#pair", ids[11])


def test_zooming_and_moving_change_what_is_below_the_pointer(page, run):
    x, y = point_at(page, 12, 12)
    page.mouse.dblclick(x, y)
    page.mouse.dblclick(x, y)
    ids = run.manifest().image_ids()
    page.mouse.move(x + 3, y + 3)
    wait_for_text(page, "#card", ids[12])
    box = page.locator("#map-semantic").bounding_box()
    page.mouse.move(box["x"] + BAR + 3, box["y"] + BAR + 3)  # no longer image 0
    page.wait_for_function("id => !document.querySelector('#card').innerText.includes(id)", arg=ids[12])
    assert "onerror" not in page.locator("#card").inner_text()
    before = page.locator("#card").inner_text()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 120, y + 120, steps=4)
    page.mouse.up()
    page.mouse.move(box["x"] + BAR + 3, box["y"] + BAR + 3)
    page.wait_for_function("before => document.querySelector('#card').innerText !== before", arg=before)
    page.get_by_role("button", name="Show the whole maps").click()
    point_at(page, 0, 1)
    wait_for_text(page, "#card", HOSTILE)


def picture(page, kind):
    return page.evaluate(f"document.querySelector('#map-{kind}').toDataURL()")


def test_rank_and_order_recolour_the_maps(page):
    by_value = picture(page, "semantic")
    page.check("#rank")
    assert picture(page, "semantic") != by_value
    page.uncheck("#rank")
    assert picture(page, "semantic") == by_value
    for order, text in (("label", "by label"), ("cluster", "by similarity")):
        page.select_option("#order", order)
        wait_for_order(page, text)
        assert picture(page, "semantic") != by_value


def test_queries_are_found_by_id_and_label_and_sorted(page, run):
    assert page.locator("#queries-count").inner_text().startswith("24 queries")
    page.fill("#search", "class 1")
    assert page.locator("#queries-count").inner_text().startswith("8 queries")
    page.fill("#search", "data 13")
    assert page.locator(".queries > li").count() == 1
    page.fill("#search", "")

    def gains():
        texts = page.locator(".queries .gain").all_inner_texts()
        return [float(text.split()[1].replace("\N{MINUS SIGN}", "-")) for text in texts]

    page.get_by_role("button", name="Show more").click()
    page.get_by_role("button", name="Show more").click()
    assert len(gains()) == 24
    assert gains() == sorted(gains(), reverse=True)
    scores = {(s["method"], s["k"]): s["f1"] for s in run.summary()["retrieval"] if s["layer"] == "late"}
    difference = scores["semantic", 1] - scores["spatio-semantic", 1]
    assert np.mean(gains()) == pytest.approx(difference, abs=0.006)
    page.select_option("#sort", "loss")
    assert page.locator(".queries > li").count() == 8
    assert gains() == sorted(gains())


def test_a_hit_is_pinned_with_the_numbers_of_the_store(page, run):
    page.fill("#search", "data 5.png")
    button = page.locator(".ranking").nth(1).locator("button").first
    hit = int(run.similarity("late").to_numpy()[5, np.arange(24) != 5].argmax())
    hit += hit >= 5
    assert run.manifest().image_ids()[hit] in button.get_attribute("aria-label")
    button.click()
    wait_for_text(page, "#pair", "data 5.png")
    assert abs(float(numbers(page, "#pair")["semantic"]) - float(run.similarity("late")[5, hit])) < 1e-4


def test_other_kernels_have_the_numbers_of_the_store(browser, addresses, rectangular):
    page = open_page(browser, addresses["rectangular"])
    page.select_option("#layer", "late")
    wait_for_text(page, "#pair", "late")
    page.select_option("#order", "given")
    wait_for_order(page, "as given")
    for kernel in ("linear", "rbf", "cosine"):
        page.select_option("#kernel", kernel)
        wait_for_text(page, "#card", "No pair chosen")
        page.locator("#map-semantic").focus()
        for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
        wait_for_text(page, "#card", "queries 2.png", "data 1.png")
        shown = numbers(page)
        for kind in ("semantic", "spatio-semantic"):
            stored = float(rectangular.similarity("late", kernel, kind)[2, 1])
            assert float(shown[kind]) == pytest.approx(stored, abs=6e-5, rel=6e-5)
        gap = float(rectangular.gap("late", kernel)[2, 1])
        assert gap <= float(shown["certified gap"]) <= 1.2 * gap + 1e-6
    assert page.problems == []
    page.close()


def test_cells_that_are_undefined_have_a_colour_of_their_own(browser, tmp_path):
    z = 1e-3 * np.random.default_rng(0).normal(size=(8, 4, 5)).astype(np.float32)
    z[7] = 0
    np.save(tmp_path / "z.npy", z)
    data = {"source": "features", "layers": {"a": str(tmp_path / "z.npy")}}
    run = srs.run({"run": str(tmp_path / "run"), "data": data, "kernels": ["cosine", "linear"]})
    page = open_page(browser, write_report(run, tmp_path / "page.html").as_uri())
    page.select_option("#order", "given")
    wait_for_order(page, "as given")
    corner = page.evaluate(
        "() => { const map = document.querySelector('#map-semantic');"
        " return [...map.getContext('2d').getImageData(map.width - 5, 5, 1, 1).data]; }"
    )
    assert corner == [0x8A, 0x8F, 0x94, 255]
    assert page.locator(".scale", has_text="undefined").count() == 3
    page.select_option("#kernel", "linear")  # of which all similarities are small
    wait_for_text(page, "#card", "No pair chosen")
    page.locator("#map-semantic").focus()
    page.keyboard.press("ArrowRight")
    wait_for_text(page, "#card", "linear")
    for kind in ("semantic", "spatio-semantic"):
        stored = float(run.similarity("a", "linear", kind)[0, 1])
        assert float(numbers(page)[kind]) == pytest.approx(stored, rel=1e-4)
    ends = page.locator("figure:has(#map-semantic) .scale > span").all_inner_texts()
    assert 0 < abs(float(ends[0])) < 1e-4
    assert "cosine" in page.locator("#pair .card").inner_text()
    page.close()


def test_two_fingers_zoom_where_they_are(browser, addresses, run):
    context = browser.new_context(has_touch=True, viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.goto(addresses["run"])
    page.wait_for_selector("html[data-ready]", state="attached")
    page.select_option("#order", "given")
    wait_for_order(page, "as given")
    canvas = page.locator("#map-semantic")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"]
    fingers = context.new_cdp_session(page)

    def touch(kind, *places):
        points = [{"x": x + dx, "y": y + dy, "id": at} for at, (dx, dy) in enumerate(places)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    assert canvas.evaluate("map => map.style.touchAction") == "pan-y"
    touch("touchStart", (-20, 0), (20, 0))
    for spread in range(25, 85, 5):
        touch("touchMove", (-spread, 0), (spread, 0))
    touch("touchEnd")
    page.wait_for_function("() => document.querySelector('#map-semantic').style.touchAction === 'none'")
    ids = run.manifest().image_ids()
    page.mouse.move(box["x"] + BAR + 3, box["y"] + BAR + 3)
    page.wait_for_function("() => document.querySelector('#card strong')")
    assert page.locator("#card strong").first.inner_text() not in ids[:6]  # a quarter of the map fills it
    context.close()


@pytest.mark.parametrize("name", ["run", "rectangular", "neighbours"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_page_of_any_run_fits_its_window(browser, addresses, name, width):
    page = open_page(browser, addresses[name], width=width)
    assert page.problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".queries > li").count() > 0
    assert page.locator("#map-semantic").count() == (name != "neighbours")
    assert page.locator("#patches-matched").is_visible()
    for section in ("retrieval", "run"):
        page.evaluate(f"location.hash = '{section}'")
        below = f"document.querySelector('#{section} h2').getBoundingClientRect().top"
        assert page.evaluate(f"{below} >= document.querySelector('.bar').getBoundingClientRect().bottom")
    captions = "[...document.querySelectorAll('.scroll caption span')].map(one => one.scrollWidth)"
    assert max(page.evaluate(captions)) < width
    faint = "[...document.querySelectorAll('.score')].some(one => getComputedStyle(one.parentElement).opacity < 1)"
    assert not page.evaluate(faint)
    page.close()


def test_dark_mode_and_print_have_their_own_colours(browser, addresses):
    page = open_page(browser, addresses["run"])
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    panel = "getComputedStyle(document.querySelector('#pair .card'))"
    assert page.evaluate(f"{panel}.backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(f"{panel}.color") == "rgb(0, 0, 0)"
    assert not page.locator("#card").is_visible()  # nothing is chosen yet
    clipped = (
        "[...document.querySelectorAll('.ranking ol')].some(list => list.scrollWidth > list.clientWidth)"
    )
    page.set_viewport_size({"width": 740, "height": 1000})
    assert not page.evaluate(clipped)
    assert not page.locator("#search").is_visible()
    page.close()


def test_without_scripts_the_page_shows_still_maps_and_facts(browser, addresses):
    page = browser.new_page(java_script_enabled=False)
    page.goto(addresses["run"])
    assert page.locator(".stills img").count() == 6
    assert page.locator(".stills img").first.is_visible()
    assert page.get_by_text("auction, version").is_visible()
    page.close()


@pytest.fixture(scope="module")
def served(run):
    server = Server(LiveRun(run, Cache(None)))
    yield server.address
    server.close()


@pytest.fixture(scope="module")
def site(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_site(run, folder, SilentReporter())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.parametrize("name", ["served", "site"])
def test_a_server_and_a_site_show_what_the_page_shows(browser, run, name, request):
    page = open_page(browser, request.getfixturevalue(name))
    page.select_option("#layer", "late")
    page.select_option("#order", "given")
    wait_for_order(page, "as given")
    ids = run.manifest().image_ids()
    place = point_at(page, 5, 17)
    wait_for_text(page, "#card", ids[5], ids[17])
    page.wait_for_function("() => !document.querySelector('#card').innerText.includes('\u2026')")
    shown = numbers(page)
    for title, value in expected(run, 5, 17).items():
        assert abs(float(shown[title]) - value) < 6e-5, title
    page.mouse.click(*place)
    wait_for_text(page, "#pair", ids[5], ids[17], "late")
    assert abs(float(numbers(page, "#pair")["semantic"]) - expected(run, 5, 17)["semantic"]) < 6e-5
    if name == "served":
        page.route("**/queries/*.json", lambda route: route.abort())
        page.select_option("#layer", "early")
        wait_for_text(page, "#queries-app", "could not be ranked", "The server does not answer")
        page.unroute("**/queries/*.json")
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector(".queries > li")
        page.wait_for_selector("#patches-matched")
        page.wait_for_function("() => document.querySelector('#pair .frame img')?.naturalWidth > 0")
    page.wait_for_function(
        "() => document.querySelector('#queries-count')?.innerText.startsWith('24 queries')"
    )
    page.select_option("#order", "cluster")
    wait_for_order(page, "by similarity")
    assert page.problems == []
    page.close()


def test_far_away_a_cell_is_a_mean_and_near_by_a_pair(browser, tmp_path):
    run = make_run(tmp_path, 300, layers=("late",), pictures=False, matching={"matcher": "identity"})
    server = Server(LiveRun(run, Cache(None)))
    page = open_page(browser, server.address, width=400)
    page.select_option("#order", "given")
    wait_for_order(page, "as given")
    page.locator("#map-semantic").focus()
    for key in ("ArrowDown", "ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    wait_for_text(page, "#card", "mean of 4 pairs")
    semantic = run.similarity("late").to_numpy()
    assert abs(float(numbers(page)["semantic"]) - semantic[2:4, 22:24].mean()) < 6e-5
    for key in ("+", "+", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    wait_for_text(page, "#card", "data 2.png", "data 22.png")
    page.wait_for_function("() => !document.querySelector('#card').innerText.includes('\u2026')")
    assert abs(float(numbers(page)["semantic"]) - semantic[2, 22]) < 6e-5
    assert page.problems == []
    page.close()
    server.close()
