"""Tests of blocks: Prefect's own standards, their examples, their forms, and documents of an earlier schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate, BlockSchemaCreate
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite

from pollux_flows import Source
from pollux_flows.blocks import PolluxBudget, PolluxCache, PolluxDeferredJob, PolluxProvider
from pollux_flows.blocks.registration import aregister_block_types, has_current_form
from pollux_flows.flows import realtime, submit, warm_cache
from tests.prefect.jobs import no_jobs_are_left

pytestmark = pytest.mark.usefixtures(no_jobs_are_left.__name__)


@pytest.mark.parametrize("block", [PolluxProvider, PolluxBudget, PolluxCache, PolluxDeferredJob])
class TestStandards(BlockStandardTestSuite):
    """Prefect's standards: descriptions that are sentences, a link, an example that loads the block."""

    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        kind: type[Block] = request.param
        return kind

    @pytest.mark.skip(reason="a logo needs an address on the web; without one, the UI shows an icon of its own")
    def test_has_a_valid_image(self, block: type[Block]) -> None: ...


def save_cache(provider: PolluxProvider) -> str:
    return warm_cache([Source.from_text("A long report. " * 500)], provider)


def save_budget(_: PolluxProvider) -> str:
    PolluxBudget(usd_per_day=10.0).save("of-examples", overwrite=True)
    return "of-examples"


def submit_job(provider: PolluxProvider) -> str:
    return submit(["Why?"], provider)


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        (PolluxProvider, lambda _: "of-examples"),
        (PolluxBudget, save_budget),
        (PolluxCache, save_cache),
        (PolluxDeferredJob, submit_job),
    ],
)
def test_the_example_of_a_block_runs(
    kind: type[Block], save: Callable[[PolluxProvider], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The example is that of the block's page in the UI, with the name of a saved block."""
    provider = PolluxProvider(provider="gemini", model="gemini-2.5-flash", use_mock=True)
    provider.save("of-examples", overwrite=True)
    example = str(kind.get_code_example()).replace("BLOCK_NAME", save(provider)).replace('"gemini"', '"of-examples"')
    code = example.removeprefix("```python").removesuffix("```")
    exec(compile(code[code.index("from pollux") :], kind.__name__, "exec"), {})  # noqa: S102 (the example is ours)
    assert capsys.readouterr().out


def test_the_form_of_a_provider_has_one_input_a_field() -> None:
    """There is no tab for None, which would save the default; no title is the name of a variable."""
    schema = PolluxProvider.model_json_schema()
    for field in [*schema["properties"].values(), *schema["definitions"]["RetryPolicy"]["properties"].values()]:
        assert "anyOf" not in field
        assert not field.get("title", "").endswith(" S")
    assert schema["secret_fields"] == ["api_key"]
    assert schema["properties"]["api_key"]["format"] == "password"


async def test_a_provider_of_an_earlier_schema_can_be_picked_loaded_and_saved() -> None:
    """The checksum of its schema differs from ours. Saving the provider gives it the present schema."""
    await aregister_block_types()
    earlier = PolluxProvider.model_json_schema()
    del earlier["properties"]["tokens_per_minute"]
    earlier["properties"]["model"]["title"] = "Model of old"
    async with get_client() as client:
        kind = await client.read_block_type_by_slug("pollux-provider")
        schema = await client.create_block_schema(
            BlockSchemaCreate(fields=earlier, block_type_id=kind.id, capabilities=[], version="0.0.9")
        )
        assert schema.checksum != PolluxProvider._calculate_schema_checksum()
        document = await client.create_block_document(
            BlockDocumentCreate(
                name="of-an-earlier-schema",
                data={"provider": "openai", "model": "gpt-4.1-mini", "use_mock": True},
                block_type_id=kind.id,
                block_schema_id=schema.id,
            )
        )
        picker: dict[str, Any] = {"block_types": {"slug": {"any_": ["pollux-provider"]}}}
        listed = await client.request("POST", "/block_documents/filter", json=picker)
        assert "of-an-earlier-schema" in {each["name"] for each in listed.json()}
        deployment = await (await realtime.ato_deployment("of-an-earlier-schema")).aapply()
        picked = {"prompt": "Who?", "provider": {"$ref": {"block_document_id": str(document.id)}}}
        run = await client.create_flow_run_from_deployment(deployment, parameters=picked)
        assert not has_current_form(document, PolluxProvider)
    parameters = realtime.validate_parameters(run.parameters)
    assert parameters["provider"].name == "of-an-earlier-schema"
    await parameters["provider"].asave("of-an-earlier-schema", overwrite=True)
    async with get_client() as client:
        saved = await client.read_block_document_by_name("of-an-earlier-schema", "pollux-provider")
    assert has_current_form(saved, PolluxProvider), "saving it again, as pollux-flows apply does, gives it the new form"
