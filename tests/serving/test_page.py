"""The chat page in a real browser: it streams, stops, resets, forgets nothing that failed, and shows text as text."""

import json
import os
import shutil

import pytest
from chatting import NAME

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: extra 'test'")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", pytest.param("dark", marks=pytest.mark.slow)])
def page(browser, server, request):
    page = browser.new_page(color_scheme=request.param, viewport={"width": 480, "height": 720})
    page.set_default_timeout(300_000)  # milliseconds; a busy machine is slow
    page.failures = []
    page.on("console", lambda said: page.failures.append(said.text) if "Content Security" in said.text else None)
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.on("requestfailed", lambda asked: page.failures.append(asked.url) if "completions" not in asked.url else None)
    page.on("request", lambda asked: page.failures.append(asked.url) if server.url not in asked.url else None)
    page.goto(server.url)
    page.get_by_role("heading", name=NAME).wait_for()
    yield page
    assert page.failures == []
    page.close()


def send(page, text):
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("textbox", name="Message").press("Enter")


def answered(page, count):
    """Waits until there are `count` answers, all done."""
    page.locator(f"#conversation[aria-busy=false] article.assistant:nth-of-type({2 * count})").wait_for()


def told(page):
    """(who, what) of all that is shown."""
    return [
        (box.locator("h2").inner_text(), box.locator("p").text_content())
        for box in page.locator("#conversation article").all()
    ]


def test_messages_are_answered_with_the_conversation_before_them(page):
    bodies = []
    page.on("request", lambda asked: bodies.append(asked.post_data_json) if asked.post_data else None)
    hostile = "<b>bold</b> <img src=x onerror=alert(1)>"
    page.get_by_text("System prompt").click()
    page.get_by_label("What the model is told").fill("Be brief.")
    send(page, "hi")
    answered(page, 1)
    send(page, hostile)
    answered(page, 2)
    shown = told(page)
    assert [who for who, _ in shown] == ["You", "Model"] * 2
    assert shown[2][1] == hostile and page.locator("article b, article img").count() == 0
    assert bodies[0]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    expected = [("system", "Be brief."), ("user", "hi"), ("assistant", shown[1][1]), ("user", hostile)]
    assert [(m["role"], m["content"]) for m in bodies[-1]["messages"]][-1] == expected[-1]


def test_stop_keeps_what_was_said_and_reset_forgets_it(page, server):
    slow(page)
    send(page, "hello")
    page.locator("article.assistant p", has_text="ab").wait_for()
    assert page.get_by_role("button", name="Send").is_disabled()
    page.get_by_role("button", name="Stop").click()
    answered(page, 1)
    assert told(page) == [("You", "hello"), ("Model", "ab")]
    assert page.get_by_role("button", name="Stop").is_disabled()
    page.get_by_role("button", name="Reset").click()
    assert told(page) == []
    page.evaluate("window.fetch = window.realFetch")
    send(page, "anew")
    answered(page, 1)
    assert told(page)[0] == ("You", "anew")


def test_stop_before_the_first_piece_leaves_no_answer(page):
    slow(page, "")
    send(page, "hello")
    page.get_by_role("button", name="Stop").click()
    page.locator("#conversation[aria-busy=false]").wait_for()
    assert told(page) == [] and page.evaluate("messages") == []
    assert page.get_by_role("textbox", name="Message").input_value() == "hello"


def test_what_the_server_refuses_is_told_and_the_message_comes_back(page):
    send(page, "y" * 300)
    page.get_by_role("status").get_by_text("the context holds 256 tokens").wait_for()
    assert told(page) == []
    assert page.get_by_role("textbox", name="Message").input_value() == "y" * 300


def test_when_the_context_is_full_the_oldest_turns_leave_it(page):
    for count, letter in enumerate("abc", start=1):
        send(page, letter * 100)
        answered(page, count)
    assert len(told(page)) == 6
    assert page.get_by_text("The context is full").is_visible()


def test_the_page_is_readable_and_can_be_used_without_a_mouse(page, request):
    send(page, "hello")
    answered(page, 1)
    assert contrast(page, "article.user p") > 7 and contrast(page, "h1") > 7
    names = page.evaluate(
        "[...document.querySelectorAll('button, textarea')]"
        ".map(e => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent)"
    )
    assert all(names) and page.locator("html[lang]").count() == 1
    page.get_by_role("textbox", name="Message").focus()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "conversation"


def slow(page, letters="ab"):
    """Answers these letters and then nothing, until it is stopped."""
    chunks = [f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n" for text in letters]
    page.evaluate(
        """(chunks) => {
          window.realFetch = window.fetch;
          window.fetch = (path, { signal }) => Promise.resolve(new Response(new ReadableStream({
            start(controller) {
              for (const chunk of chunks) controller.enqueue(new TextEncoder().encode(chunk));
              signal.addEventListener("abort", () => controller.error(signal.reason));
            },
          })));
        }""",
        chunks,
    )


def contrast(page, selector):
    """WCAG's contrast of a text against what is behind it, from the pixels of a screenshot."""
    import io

    import matplotlib.image

    pixels = matplotlib.image.imread(io.BytesIO(page.locator(selector).first.screenshot()))[..., :3]
    linear = ((pixels + 0.055) / 1.055) ** 2.4 @ [0.2126, 0.7152, 0.0722]
    return (linear.max() + 0.05) / (linear.min() + 0.05)
