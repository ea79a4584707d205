"""The attachments of chat completions requests to OpenRouter, which has no stored files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pollux_flows.simulator.chat import reading
from pollux_flows.simulator.media import IMAGES, data_url_type, is_base64, is_web_url
from pollux_flows.simulator.wire import BadRequest, Refusal

_INPUT_OF_PART = {"image_url": "image", "input_audio": "audio", "video_url": "video"}


def check(body: dict[str, Any], model: Mapping[str, Any]) -> None:
    """Refuse attachments that the model cannot read, and invalid data."""
    for part in reading.parts(body):
        needed = _INPUT_OF_PART.get(part["type"])
        if needed and needed not in _inputs(model):
            raise Refusal(404, f"No endpoints found that support {needed} input")
        match part["type"]:
            case "image_url":
                _check_url(part["image_url"]["url"], "image_url.url", IMAGES)
            case "video_url":
                _check_url(part["video_url"]["url"], "video_url.url")
            case "input_audio" if not is_base64(part["input_audio"]["data"]):
                raise BadRequest("input_audio.data: Invalid base64 data")
            case "file":
                # Files are accepted for any model: OpenRouter parses them for one that cannot read them.
                _check_file(body, part["file"], model)


def annotate_files(body: dict[str, Any], model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the annotations of parsed files, which a client sends back so that they are not parsed again."""
    if _engine(body, model) == "native":
        return []
    return [
        {
            "type": "file",
            "file": {
                "hash": f"simulated-{place:08d}",
                "name": part["file"].get("filename", ""),
                "content": [{"type": "text", "text": f"Simulated text of {part['file'].get('filename', 'a file')}"}],
            },
        }
        for place, part in enumerate(reading.parts(body))
        if part["type"] == "file"
    ]


def _check_url(url: str, at: str, types: frozenset[str] = frozenset()) -> None:
    if url.startswith("data:"):
        kind = data_url_type(url)
        if kind is None or not is_base64(url.partition(",")[2]):
            raise BadRequest(f"{at}: Invalid data URL")
        if types and kind not in types:
            raise BadRequest(f"{at}: Unsupported type: {kind}. Supported types are: {', '.join(sorted(types))}")
    elif not is_web_url(url):
        raise BadRequest(f"{at}: Invalid URL")


def _check_file(body: dict[str, Any], file: dict[str, Any], model: Mapping[str, Any]) -> None:
    data = file.get("file_data")
    if not data:
        raise BadRequest("file.file_data: Required: a data URL or the address of a PDF")
    _check_url(data, "file.file_data", frozenset({"application/pdf"}))
    if _engine(body, model) == "native" and "file" not in _inputs(model):
        raise Refusal(404, "No endpoints found that support file input")


def _engine(body: dict[str, Any], model: Mapping[str, Any]) -> str:
    """Return the engine that reads PDFs: the plugin's, else the model, else the default one (which is billed)."""
    for plugin in body.get("plugins") or []:
        if plugin["id"] == "file-parser" and (plugin.get("pdf") or {}).get("engine"):
            return str(plugin["pdf"]["engine"])
    return "native" if "file" in _inputs(model) else "mistral-ocr"


def _inputs(model: Mapping[str, Any]) -> list[str]:
    return list(model.get("architecture", {}).get("input_modalities", []))
