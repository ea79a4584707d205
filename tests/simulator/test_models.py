"""The lists of models, for those who look before they ask."""

import httpx

CATALOGUE = "/openrouter/api/v1/models"


async def test_openrouter_lists_models_with_prices_and_parameters(http: httpx.AsyncClient) -> None:
    """All that a client needs to know before it sends anything."""
    models = {model["id"]: model for model in (await http.get(CATALOGUE)).json()["data"]}
    llama = models["meta-llama/llama-3.3-70b-instruct"]
    assert llama["architecture"]["input_modalities"] == ["text"]
    assert not {"tools", "structured_outputs", "reasoning"} & set(llama["supported_parameters"])
    nano = models["openai/gpt-5-nano"]
    assert {"tools", "structured_outputs", "reasoning"} <= set(nano["supported_parameters"])
    assert "temperature" not in nano["supported_parameters"]
    assert float(nano["pricing"]["prompt"]) > 0


async def test_the_list_comes_in_pages_when_asked_for(http: httpx.AsyncClient) -> None:
    """`links.next` leads on until nothing is left."""
    found, offset = [], 0
    while True:
        page = (await http.get(CATALOGUE, params={"offset": offset, "limit": 2})).json()
        found += [model["id"] for model in page["data"]]
        if page["links"]["next"] is None:
            break
        offset += 2
    assert len(found) == len(set(found)) == page["total_count"]


async def test_the_list_can_be_narrowed(http: httpx.AsyncClient) -> None:
    """To models that take certain parameters."""
    answer = await http.get(CATALOGUE, params={"supported_parameters": "tools,temperature"})
    assert "anthropic/claude-sonnet-4.6" in (names := [model["id"] for model in answer.json()["data"]])
    assert "openai/gpt-5-nano" not in names


async def test_one_model_can_be_looked_up(http: httpx.AsyncClient) -> None:
    """By author and slug; what is not there is 404."""
    assert (await http.get("/openrouter/api/v1/model/openai/gpt-5-nano")).json()["data"]["id"] == "openai/gpt-5-nano"
    assert (await http.get("/openrouter/api/v1/model/nobody/nothing")).status_code == 404


async def test_the_local_server_has_one_model(http: httpx.AsyncClient) -> None:
    """But it answers whatever it is called."""
    assert [model["id"] for model in (await http.get("/local/v1/models")).json()["data"]] == ["local-model"]
