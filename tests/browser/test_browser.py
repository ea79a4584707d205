"""Tests of the UI as a person uses it: save a provider, fill in a form, read the answers, press Retry and Cancel.

The tests build on each other, in this order. Each page that they open is saved as a screenshot.
"""

from __future__ import annotations

from pollux_flows.simulator import Fault
from tests.browser.conftest import Screen, World, wait_until


def open_form(screen: Screen, world: World, flow: str) -> None:
    deployment = world.request(f"/deployments/name/{flow}/{flow}")["id"]
    screen.open(f"/deployments/deployment/{deployment}/run")
    screen.wait_for_text("Additional Options")


def pick_provider(screen: Screen) -> None:
    screen.pick(screen.page.locator(".block-document-input .p-select-button__control").first, "openai")


def ask(screen: Screen, world: World, flow: str, prompts: str) -> None:
    """Fill in the form of a flow with prompts, a line each, and submit it."""
    open_form(screen, world, flow)
    screen.fill("Prompts from", prompts)
    pick_provider(screen)
    submit(screen)


def submit(screen: Screen) -> None:
    screen.press("Submit")
    screen.page.wait_for_url("**/deployments/deployment/*tab=Runs*")


def count_calls(world: World) -> int:
    return sum(request.operation == "generate" for request in world.simulator.requests)


def test_a_provider_is_saved(screen: Screen, world: World) -> None:
    screen.open("/blocks/catalog/pollux-provider/create")
    screen.page.locator("input").first.fill("openai")
    screen.pick(screen.page.locator(".p-select-button__control").first, "openai")
    inputs = screen.page.locator("textarea")
    inputs.nth(0).fill("gpt-4.1-mini")
    inputs.nth(1).fill("test-key-of-the-browser")
    inputs.nth(2).fill(world.provider_url)
    screen.save_screenshot("provider")
    screen.press("Create")
    screen.page.wait_for_url("**/blocks/block/*")
    screen.wait_for_text("gpt-4.1-mini")
    assert "test-key-of-the-browser" not in screen.page.content()
    screen.save_screenshot("provider-saved")


def test_every_form_opens(screen: Screen, world: World) -> None:
    for deployment in world.request("/deployments/filter", limit=50):
        open_form(screen, world, deployment["name"])
        assert screen.page.locator(".p-code-input").count() == 0, "no field is to be filled in with JSON"
        screen.save_screenshot(f"form-{deployment['name']}")


def test_the_options_that_people_set_come_first(screen: Screen, world: World) -> None:
    open_form(screen, world, "fan-out")
    options = screen.find_field("Options")
    options.get_by_text("set", exact=True).click()
    screen.fill("System instruction", "Answer in one sentence.")
    screen.pick(screen.find_field("Reasoning effort").locator("button").last, "low")
    titles = options.locator(".schema-form-property__label").all_inner_texts()
    assert [title.removesuffix(" (Optional)") for title in titles] == [
        "Options",
        "System instruction",
        "Structured answer",
        "Reasoning effort",
        "Max tokens",
        "Temperature",
        "More",
    ]
    screen.save_screenshot("options", options)


def test_prompts_are_pasted_and_a_source_is_a_link(screen: Screen, world: World) -> None:
    open_form(screen, world, "fan-out")
    screen.fill("Prompts from", "What is it?\nWho wrote it?\nWhy?")
    screen.page.get_by_role("button", name="Add item").nth(1).click()
    screen.fill("Source", "https://example.com/report.pdf")
    pick_provider(screen)
    screen.save_screenshot("fan-out-filled")
    submit(screen)
    run = world.wait_for_state("fan-out", "Completed")
    assert run["name"].startswith("What is it? · fan-out · gpt-4.1-mini")
    screen.open(f"/runs/flow-run/{run['id']}")
    screen.save_screenshot("fan-out-run")
    screen.open(world.wait_for_page(run))
    screen.wait_for_text("Simulated answer to: Who wrote it?")
    screen.wait_for_text("report.pdf")
    screen.save_screenshot("fan-out-answers")


def test_a_retry_asks_only_the_prompt_that_failed(screen: Screen, world: World) -> None:
    before = count_calls(world)
    world.simulator.fail(Fault(status=400, message="not now"), contains="number 7?")
    ask(screen, world, "fan-out", "\n".join(f"What is number {number}?" for number in range(10)))
    failed = world.wait_for_state("fan-out", "Failed")
    screen.open(world.wait_for_page(failed))
    screen.wait_for_text("1 of 10 prompts without an answer")
    screen.save_screenshot("failed-answers")
    screen.open(f"/runs/flow-run/{failed['id']}")
    screen.save_screenshot("failed-run")
    screen.press("Retry")
    screen.page.locator(".p-modal").get_by_role("button", name="Retry").click()
    run = world.wait_for_state("fan-out", "Completed")
    assert run["id"] == failed["id"]
    assert count_calls(world) - before == 11
    screen.open(world.wait_for_page(run))
    screen.wait_for_text("Simulated answer to: What is number 7?")
    screen.save_screenshot("retried-answers")


def test_a_table_gets_an_answer_in_each_row(screen: Screen, world: World) -> None:
    table = world.folder / "reviews.csv"
    table.write_text("title,body\nPump,It leaks.\nValve,\nPipe,It holds.\n")
    open_form(screen, world, "map-rows")
    screen.fill("Table", str(table))
    screen.fill("Prompt", "Summarize {title}: {body}")
    screen.fill("Output", str(world.folder / "answers.csv"))
    pick_provider(screen)
    screen.save_screenshot("map-filled")
    submit(screen)
    run = world.wait_for_state("map-rows", "Completed")
    screen.open(world.wait_for_page(run))
    screen.wait_for_text("Simulated answer to: Summarize Pipe: It holds.")
    screen.wait_for_text("1 of 3 rows without a usable answer")
    screen.save_screenshot("map-answers")
    assert len((world.folder / "answers.csv").read_text().splitlines()) == 4


def test_the_other_flows_publish_a_page(screen: Screen, world: World) -> None:
    """The runs are started through the API, without a form."""
    sources = [{"source_type": "text", "text": f"Plant {number} made {number * 100} pumps."} for number in (1, 2)]
    prompts = ["How many pumps?", "Which plant?"]
    for flow, parameters, text in (
        ("broadcast", {"prompts": prompts, "sources": sources}, "Simulated answer"),
        ("converse", {"prompt": "Who was Ada?", "conversation": "browser"}, "browser"),
        ("estimate", {"prompts": prompts, "sources": sources}, "2 calls to ask"),
        ("warm-cache", {"sources": [{"source_type": "text", "text": "A pump. " * 2000}]}, "Expires"),
    ):
        run = world.start_run(
            flow, {**parameters, "provider": world.find_provider("gemini" if flow == "warm-cache" else "openai")}
        )
        world.wait_for_state(flow, "Completed")
        screen.open(world.wait_for_page(run))
        screen.wait_for_text(text)
        screen.save_screenshot(f"{flow}-page")


def test_a_deferred_run_gets_its_answers_on_its_own_page(screen: Screen, world: World) -> None:
    """The run is suspended, and the schedule of `collect` resumes it."""
    world.simulator.batch_s = 3600
    ask(screen, world, "deferred", "How far?\nHow long?")
    suspended = world.wait_for_state("deferred", "Suspended")
    screen.open(f"/runs/flow-run/{suspended['id']}")
    screen.save_screenshot("deferred-suspended")
    for batch in world.simulator.batches:
        batch.takes_s = 0.0
    run = world.wait_for_state("deferred", "Completed")
    assert run["id"] == suspended["id"]
    screen.open(world.wait_for_page(run))
    screen.wait_for_text("Simulated answer to: How long?")
    screen.save_screenshot("deferred-answers")


def test_cancelling_a_run_that_waits_cancels_its_batch(screen: Screen, world: World) -> None:
    world.simulator.batch_s = 3600
    ask(screen, world, "deferred", "Never mind?")
    run = world.wait_for_state("deferred", "Suspended")
    screen.open(f"/runs/flow-run/{run['id']}")
    screen.press("Cancel")
    screen.page.locator(".p-modal").get_by_role("button", name="Confirm").click()
    world.wait_for_state("deferred", "Cancelled")
    batch = world.simulator.batches[-1]
    wait_until(lambda: True if batch.cancel_asked_at else None, "the batch is cancelled")
    screen.open(f"/runs/flow-run/{run['id']}")
    screen.save_screenshot("deferred-cancelled")
