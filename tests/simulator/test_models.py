"""The lists of models of OpenRouter and local servers."""

import httpx

CATALOGUE = "/openrouter/api/v1/models"


async def test_openrouter_lists_models_with_prices_and_parameters(http: httpx.AsyncClient) -> None:
    """The catalogue has prices, modalities and supported parameters."""
    models = {model["id"]: model for model in (await http.get(CATALOGUE)).json()["data"]}
    llama = models["meta-llama/llama-3.3-70b-instruct"]
    assert llama["architecture"]["input_modalities"] == ["text"]
    assert not {"tools", "structured_outputs", "reasoning"} & set(llama["supported_parameters"])
    nano = models["openai/gpt-5-nano"]
    assert {"tools", "structured_outputs", "reasoning"} <= set(nano["supported_parameters"])
    assert "temperature" not in nano["supported_parameters"]
    assert float(nano["pricing"]["prompt"]) > 0


async def test_openrouter_lists_models_in_pages(http: httpx.AsyncClient) -> None:
    """Following `links.next` returns each model once."""
    found, offset = [], 0
    while True:
        page = (await http.get(CATALOGUE, params={"offset": offset, "limit": 2})).json()
        found += [model["id"] for model in page["data"]]
        if page["links"]["next"] is None:
            break
        offset += 2
    assert len(found) == len(set(found)) == page["total_count"]


async def test_openrouter_filters_models_by_parameters(http: httpx.AsyncClient) -> None:
    """The list can be limited to models that support certain parameters."""
    answer = await http.get(CATALOGUE, params={"supported_parameters": "tools,temperature"})
    assert "anthropic/claude-sonnet-4.6" in (names := [model["id"] for model in answer.json()["data"]])
    assert "openai/gpt-5-nano" not in names


async def test_openrouter_returns_one_model(http: httpx.AsyncClient) -> None:
    """A model is found by author and slug; an unknown one is 404."""
    assert (await http.get("/openrouter/api/v1/model/openai/gpt-5-nano")).json()["data"]["id"] == "openai/gpt-5-nano"
    assert (await http.get("/openrouter/api/v1/model/unknown/model")).status_code == 404


async def test_the_local_server_lists_one_model(http: httpx.AsyncClient) -> None:
    assert [model["id"] for model in (await http.get("/local/v1/models")).json()["data"]] == ["local-model"]
