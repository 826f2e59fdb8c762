"""The page in a real browser, without a network: draws, plays, fits a phone, says nothing amiss."""

import shutil
import time

import pytest

from learned_opt.report.page import write_report

pytestmark = pytest.mark.browser

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking")


@pytest.fixture(scope="module")
def url(results, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    history = folder / "history.jsonl"
    history.write_text("\n".join(f'{{"step": {i}, "meta_loss": {1 / (i + 1)}}}' for i in range(99)))
    return write_report(results, folder / "report.html", training_history=history).as_uri()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def browser(request, url):
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver_path = shutil.which("chromedriver")
    if binary is None or driver_path is None:
        pytest.skip("needs chromium and chromedriver on the PATH")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    width, height = request.param
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    # A headless window is never narrower than 500 pixels; emulation is.
    metrics = {"width": width, "height": height, "pixelRatio": 1.0}
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        driver.get(url)
        yield driver
        complaints = driver.get_log("browser")
        assert complaints == []
    finally:
        driver.quit()


def wait_until(condition, seconds: float = 20.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the page did not get there in time"
        time.sleep(0.05)
    return value


def draw_all(browser) -> int:
    """Unfold and scroll past everything; the number of charts drawn."""
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    plots = browser.find_elements("css selector", ".plot")
    for plot in plots:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        wait_until(lambda plot=plot: plot.get_attribute("data-drawn"))
    return len(plots)


def test_every_chart_is_drawn_and_nothing_overflows(browser):
    assert draw_all(browser) == 10
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].every(p => p.querySelector('svg.main-svg'))"
    )
    assert drawn
    scroll, client = browser.execute_script(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    )
    assert scroll <= client
    overflowing = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter("
        "p => p.querySelector('svg.main-svg').getBoundingClientRect().right > innerWidth).length"
    )
    assert overflowing == 0


def test_no_text_is_small(browser):
    draw_all(browser)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some("
        "n => n.nodeType === 3 && n.textContent.trim()) && !['SCRIPT', 'STYLE'].includes(e.tagName)"
        " && e.getClientRects().length).map(e => [parseFloat(getComputedStyle(e).fontSize),"
        " e.tagName, e.textContent.slice(0, 20)])"
    )
    # Exponents of powers of ten are raised and smaller; they are digits beside a full-size "10".
    small = [s for s in sizes if s[0] < 14 and s[1] != "tspan"]
    assert len(sizes) > 100
    assert small == []


def test_paths_play_pause_and_follow_the_slider(browser):
    plot = browser.find_element("css selector", "#paths .plot")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    wait_until(lambda: plot.get_attribute("data-drawn"))
    state = (
        "const p = document.querySelector('#paths .plot');"
        "const s = document.querySelector('#paths .player input');"
        "return {at: +s.value, last: +s.max, points: Math.max(...p.data.filter("
        "t => t.legendgroup && t.mode === 'lines').map(t => t.x.length))}"
    )
    read = lambda: browser.execute_script(state)  # noqa: E731
    start = read()
    assert start["at"] == start["last"] > 10
    assert start["points"] == 61
    button = browser.find_element("css selector", "#paths .player button")
    browser.execute_script("arguments[0].click()", button)
    early = wait_until(lambda: (now := read())["at"] < start["last"] and now)
    assert early["points"] < 61
    assert "Pause" in button.text
    later = wait_until(lambda: (now := read())["at"] > early["at"] and now)
    assert early["points"] <= later["points"]
    browser.execute_script("arguments[0].click()", button)
    wait_until(lambda: "Play" in button.text)
    time.sleep(0.3)
    rest = read()
    time.sleep(0.3)
    assert read() == rest
    browser.execute_script(
        "const s = document.querySelector('#paths .player input'); s.value = 0;"
        "s.dispatchEvent(new Event('input'))"
    )
    wait_until(lambda: read()["points"] == 1)
    assert "after 0 gradients" in browser.find_element("css selector", "#paths output").text


def test_play_runs_to_the_end(browser):
    plot = browser.find_element("css selector", "#paths .plot")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    wait_until(lambda: plot.get_attribute("data-drawn"))
    button = browser.find_element("css selector", "#paths .player button")
    slider = browser.find_element("css selector", "#paths .player input")
    browser.execute_script("arguments[0].click()", button)
    wait_until(lambda: "Pause" in button.text)
    wait_until(lambda: "Play" in button.text, 60)
    assert slider.get_property("value") == slider.get_attribute("max")


def test_legend_hides_a_rule_in_every_chart(browser):
    draw_all(browser)
    count = (
        "return [...document.querySelectorAll('.plot')].flatMap(p => p.data).filter("
        "t => t.legendgroup === 'adam@4').map(t => t.visible)"
    )
    before = browser.execute_script(count)
    assert len(before) > 10
    assert all(v is True for v in before)
    button = browser.find_element("css selector", '.legend button[data-rule="adam@4"]')
    browser.execute_script("arguments[0].click()", button)
    assert not any(browser.execute_script(count))
    assert button.get_attribute("aria-pressed") == "false"
    browser.execute_script("document.querySelector('.legend .all').click()")
    assert all(browser.execute_script(count))


def test_tables_sort_and_tabs_switch(browser):
    rules = (
        "return [...document.querySelectorAll('#boards .panel:not([hidden]) tbody tr')]"
        ".map(r => +r.cells[3].dataset.sort)"
    )
    click = "document.querySelectorAll('#boards .panel:not([hidden]) th button')[3].click()"
    browser.execute_script(click)
    ascending = browser.execute_script(rules)
    assert ascending == sorted(ascending)
    browser.execute_script(click)
    assert browser.execute_script(rules) == ascending[::-1]
    assert len(browser.find_elements("css selector", "#boards .panel:not([hidden])")) == 1
    browser.execute_script("document.querySelectorAll('[data-panels] button')[1].click()")
    (panel,) = browser.find_elements("css selector", "#boards .panel:not([hidden])")
    assert "leaderboard, re_zn" in panel.get_attribute("innerHTML")


def test_steps_switch_between_log_and_linear(browser):
    draw_all(browser)
    types = (
        "return [...document.querySelectorAll('figure[data-steps] .plot')]"
        ".map(p => p._fullLayout.xaxis.type + ' ' + p._fullLayout.yaxis.type)"
    )
    assert set(browser.execute_script(types)) == {"log log"}
    browser.execute_script("document.querySelector('[data-scale=linear]').click()")
    wait_until(lambda: set(browser.execute_script(types)) == {"linear log"})
    browser.execute_script("document.querySelector('[data-scale=log]').click()")
    wait_until(lambda: set(browser.execute_script(types)) == {"log log"})
