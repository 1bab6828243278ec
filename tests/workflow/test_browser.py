"""The report in a real browser: headless Chromium, on a desktop's screen and on a phone's.

Its pictures are left in `test-artifacts/` of the checkout, to be looked at.
"""

import shutil

import pytest
from helpers import REPOSITORY
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PICTURES = REPOSITORY / "test-artifacts"
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
QUIET = ["background-networking", "component-update", "sync", "extensions"]

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not found: `apt-get install chromium chromium-driver` has them"
)


@pytest.fixture(scope="module")
def page(finished) -> str:
    workflow, config = finished
    return (workflow.folder / "results" / "reports" / config["name"] / "report.html").as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    profile = tmp_path_factory.mktemp("chromium")
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    for part in QUIET:  # no look-ups of Google's hosts
        options.add_argument(f"--disable-{part}")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(params=SCREENS)
def screen(chromium, page, request) -> tuple[webdriver.Chrome, str]:
    """The report on one of the screens."""
    width, height = SCREENS[request.param]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": request.param == "phone"}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chromium.get(page)
    return chromium, request.param


def test_all_of_it_can_be_read(screen):
    driver, name = screen
    PICTURES.mkdir(exist_ok=True)
    driver.save_screenshot(str(PICTURES / f"report-{name}.png"))
    wide, seen = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert (wide, seen) == (seen, SCREENS[name][0])  # the page itself never scrolls sideways
    # What is wider scrolls within a frame of its own, and no text is smaller than can be read.
    outside = driver.execute_script(
        "return [...document.querySelectorAll('body *')].filter(element => !element.closest('.scroll, .card, pre')"
        " && element.getBoundingClientRect().right > innerWidth + 0.5).map(element => element.outerHTML)"
    )
    assert outside == []
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('td, th, p, dd, dt, figcaption, pre')]"
        ".map(element => parseFloat(getComputedStyle(element).fontSize))"
    )
    assert min(sizes) >= 12
    assert all(driver.execute_script("return [...document.images].map(image => image.naturalWidth)"))


def test_nothing_comes_from_elsewhere_and_nothing_fails(screen):
    driver, _ = screen
    assert driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert driver.get_log("browser") == []


def test_a_click_sorts_the_layers(screen):
    driver, _ = screen
    table = driver.find_element(By.CSS_SELECTOR, "#layers table")
    headings = table.find_elements(By.CSS_SELECTOR, "th.sort")
    column = next(k for k, heading in enumerate(headings) if heading.text == "error reduction (%)")

    def values() -> list[float]:
        script = "return [...arguments[0].tBodies[0].rows].map(row => row.cells[arguments[1]].textContent)"
        return list(map(float, driver.execute_script(script, table, column)))

    before = values()
    driver.execute_script("arguments[0].scrollIntoView({inline: 'center', block: 'center'})", headings[column])
    headings[column].click()
    assert values() == sorted(before) != before
    headings[column].send_keys(Keys.ENTER)  # by the keyboard, too
    assert values() == sorted(before, reverse=True)


def test_links_lead_to_their_sections(screen):
    driver, _ = screen
    for link in driver.find_elements(By.CSS_SELECTOR, "nav a"):
        place = link.get_attribute("href").rpartition("#")[2]
        driver.execute_script("location.hash = arguments[0]", place)
        assert driver.find_element(By.ID, place).is_displayed()
